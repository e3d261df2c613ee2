"""DoRA on texts is peft's DoRA: the same logits from peft's own loader, and the same gradients."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from test_text_bake import loaded, logits

from patina.lora import inject
from patina.lora.recipe import Recipe
from patina.text.bake import bake
from patina.text.export import Exporter
from tests.tiny_text import qwen2, save, tokenizer

# peft asks transformers' models for a property that transformers is renaming
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
BIASED = "model.layers.0.self_attn.q_proj"


def adapted(learned: bool = True):
    """A Qwen2, whose queries, keys and values have biases, with a DoRA of ours that changes what it says."""
    model = qwen2()
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(len(name)))
    base = model.state_dict()
    base = {key: tensor.clone() for key, tensor in base.items()}
    inject.adapt(model, ["q_proj", "down_proj"], 4, 8, 3, Recipe("dora", lengths="rows"))
    draw = torch.Generator().manual_seed(1)
    for adapter in inject.adapters(model).values() if learned else ():
        torch.nn.init.normal_(adapter.B, std=0.2, generator=draw)
        adapter.weights["dora_scale"].data *= torch.rand(adapter.weights["dora_scale"].shape, generator=draw) + 0.5
    return model, base


def exported(folder: Path, model) -> Path:
    return Exporter("model", model, tokenizer().save_pretrained, folder, "one", "base", 8, 0.0, torch.float32).final(
        1, 1.0
    )


def by_peft(folder: Path, base, train: bool = False):
    model = qwen2()
    model.load_state_dict(base)
    return PeftModel.from_pretrained(model, str(folder), is_trainable=train).eval()


def test_at_the_start_it_changes_nothing() -> None:
    model, base = adapted(learned=False)
    plain = qwen2()
    plain.load_state_dict(base)
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-5, atol=1e-5)


def test_pefts_loader_gives_our_logits_and_so_does_the_merged_model(tmp_path) -> None:
    model, base = adapted()
    folder = exported(tmp_path, model)
    torch.testing.assert_close(logits(by_peft(folder, base)), logits(model), rtol=1e-5, atol=1e-5)
    plain = qwen2()
    plain.load_state_dict(base)
    assert (logits(plain) - logits(model)).abs().max() > 0.1
    place = save(tmp_path / "base", plain)
    bake(place, [(folder, 1.0)], tmp_path / "out", None, "none")
    torch.testing.assert_close(loaded(tmp_path / "out"), logits(model), rtol=1e-4, atol=1e-4)


def test_the_gradients_are_pefts(tmp_path) -> None:
    model, base = adapted()
    theirs = by_peft(exported(tmp_path, model), base, train=True)
    for one in (model, theirs):
        one(input_ids=torch.arange(40, 60)[None]).logits.square().mean().backward()
    ours = inject.adapters(model)[BIASED].weights
    theirs_by_name = dict(theirs.named_parameters())
    names = {"lora_A": "lora_A", "lora_B": "lora_B", "dora_scale": "lora_magnitude_vector"}
    for name, peft_name in names.items():
        found, wanted = ours[name].grad, theirs_by_name[f"base_model.model.{BIASED}.{peft_name}.default.weight"].grad
        assert found is not None
        assert wanted is not None
        torch.testing.assert_close(found.flatten(), wanted.flatten(), rtol=1e-4, atol=1e-6)
