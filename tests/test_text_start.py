"""A run in text mode that starts from an adapter folder begins where that one ended."""

from pathlib import Path

import pytest
import torch
from test_text_bake import adapter, gpt2, logits
from test_text_run import SMALL

from patina import configfile
from patina.errors import PatinaError
from patina.lora import inject
from patina.run import run
from patina.text.start import start_from
from tests.tiny_text import llama, save

# peft asks transformers' models for a property that transformers is renaming
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
TARGETS = ["q_proj", "down_proj"]


def live(rank: int, model=llama, targets=TARGETS):
    """A model with a LoRA of ours at another strength than the adapter's."""
    found = model()
    inject.adapt(found, targets, rank, 3 * rank, seed=5)
    return found


@pytest.mark.parametrize("rank", [4, 6])
def test_an_adapter_of_our_rank_or_less_is_taken_over_exactly(tmp_path, rank) -> None:
    facts = {"use_rslora": True, "alpha_pattern": {"down_proj": 3}}
    folder, wanted = adapter(tmp_path / "one", llama(), **facts)
    model = live(rank)
    assert start_from(folder, model) == ["one: 4 of its 4 layers start this LoRA's 4"]
    torch.testing.assert_close(logits(model), wanted, rtol=1e-4, atol=1e-4)
    ours = inject.adapters(model)["model.layers.0.self_attn.q_proj"]
    drawn = inject.adapters(live(rank))["model.layers.0.self_attn.q_proj"]
    assert torch.equal(ours.A[4:], drawn.A[4:])  # free to learn


def test_a_larger_one_is_cut_to_the_nearest_and_the_loss_told(tmp_path) -> None:
    folder, wanted = adapter(tmp_path / "one", llama(), r=8)
    model = live(7)
    _, lost = start_from(folder, model)
    assert lost.startswith("its rank is higher: ")
    before = (logits(llama()) - wanted).norm()
    assert 0 < (logits(model) - wanted).norm() < 0.5 * before


def test_layers_that_only_one_of_them_has_are_named_or_start_as_drawn(tmp_path) -> None:
    folder, _ = adapter(tmp_path / "one", llama(), target_modules=["q_proj", "v_proj"])
    model = live(4, targets=["q_proj", "k_proj"])
    said, unused = start_from(folder, model)
    assert said == "one: 2 of its 4 layers start this LoRA's 4"
    assert unused == "not used: model.layers.0.self_attn.v_proj, model.layers.1.self_attn.v_proj"
    assert not inject.adapters(model)["model.layers.0.self_attn.k_proj"].B.any()


@pytest.mark.parametrize(
    ("facts", "model", "said"),
    [
        ({"use_dora": True}, llama, "is a DoRA"),
        ({"target_modules": ["o_proj"]}, llama, "holds none of the 4 layers"),
        ({}, lambda: llama(intermediate_size=32), r"has model\.layers\.0\.mlp\.down_proj of .* is it its base"),
    ],
)
def test_what_cannot_be_continued_is_refused(tmp_path, facts, model, said) -> None:
    folder, _ = adapter(tmp_path / "one", llama(), **facts)
    with pytest.raises(PatinaError, match=said):
        start_from(folder, live(4, model))


def test_an_adapter_of_another_kind_of_model_is_refused(tmp_path) -> None:
    folder, _ = adapter(tmp_path / "one", gpt2(), target_modules=["c_attn"], fan_in_fan_out=True)
    with pytest.raises(PatinaError, match="does not fit its base"):
        start_from(folder, live(4))


@pytest.mark.parametrize("quantize", ["none", "4bit"])
def test_a_run_goes_on_from_the_folder_that_another_wrote(tmp_path, monkeypatch, capsys, quantize) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "base", llama(hidden_size=64, intermediate_size=64))
    Path("train.jsonl").write_text('{"instruction": "a?", "output": "b"}\n' * 3)
    Path("run.yaml").write_text(SMALL.replace("validation_data: other.jsonl\n", "preview: {every: 0}\n"))
    first = run(configfile.load(Path("run.yaml"), ["max_steps=2", "save_steps=0"]))
    words = [f"init_lora={first}", f"quantize={quantize}", "learning_rate=1e-9", "weight_decay=0", "max_steps=1"]
    again = run(configfile.load(Path("run.yaml"), [*words, "output_dir=out/again", "lora_alpha=16"]))
    assert "init_lora: small: 14 of its 14 layers start this LoRA's 14" in capsys.readouterr().out
    from patina.text.adapters import read_adapter

    one, two = read_adapter(first), read_adapter(again)
    for key, tensor in one.tensors.items():
        share = 2 if "lora_B" in key else 1
        torch.testing.assert_close(two.tensors[key] * share, tensor, rtol=1e-4, atol=1e-6)
    with pytest.raises(PatinaError, match="holds no adapter_config"):
        run(configfile.load(Path("run.yaml"), ["init_lora=base", "output_dir=out/third"]))
