"""A language model with an adapter baked in answers as base and adapter do by peft, and Ollama is told its template."""

import json
import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from test_text_template import CASES, made
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from patina.errors import PatinaError
from patina.text.bake import bake
from patina.text.modelfile import modelfile
from patina.text.rows import Turn
from patina.text.template import choose_template
from tests.tiny_text import llama, qwen2, save, tokenizer
from tests.toolbox import load_tool

# peft asks transformers' models for a property that transformers is renaming
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
TOLD = ("ignore:Model has `tie_word_embeddings=True`", "ignore:Setting `save_embedding_layers`")
IDS = torch.arange(40, 60)[None]
PLAIN = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}


@pytest.fixture(scope="module", autouse=True)
def quiet() -> None:
    from patina.watch.console import hush_libraries

    hush_libraries()


def gpt2() -> PreTrainedModel:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        facts = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=300, n_positions=256, initializer_range=0.2)
        facts.bos_token_id = facts.eos_token_id = None
        return GPT2LMHeadModel(facts).eval()


def adapter(
    folder: Path, model: PreTrainedModel, seed: int = 1, size: float = 0.2, **facts
) -> tuple[Path, torch.Tensor]:
    """An adapter folder as peft saves it, and the logits of its base with it."""
    tuned = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **{**PLAIN, **facts}))
    generator = torch.Generator().manual_seed(seed)
    for name, weight in tuned.named_parameters():
        if "lora_magnitude" in name:
            weight.data *= torch.rand(weight.shape, generator=generator) + 0.5
        elif "lora_" in name:
            torch.nn.init.normal_(weight, std=size, generator=generator)
    tuned.save_pretrained(str(folder))
    return folder, logits(tuned.eval())


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(input_ids=IDS).logits


def loaded(folder: Path) -> torch.Tensor:
    return logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())


@pytest.mark.parametrize(
    ("model", "facts"),
    [
        (llama, {"rank_pattern": {"layers.0.self_attn.q_proj": 2}, "alpha_pattern": {"down_proj": 3}}),
        (llama, {"use_rslora": True, "target_modules": ["q_proj", "lm_head"]}),
        (qwen2, {"use_dora": True}),
        (gpt2, {"target_modules": ["c_attn", "c_proj"]}),
        (gpt2, {"target_modules": ["c_attn", "c_proj"], "use_dora": True, "fan_in_fan_out": True}),
    ],
    ids=["patterns", "rslora with lm_head", "dora on tied", "stored turned", "dora stored turned"],
)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False", *TOLD)
def test_the_merged_model_has_the_logits_of_base_and_adapter(tmp_path, model, facts) -> None:
    base = save(tmp_path / "base", model())
    folder, wanted = adapter(tmp_path / "lora", model(), **facts)
    done = bake(base, [(folder, 1.0)], tmp_path / "out", None, "none")
    torch.testing.assert_close(loaded(tmp_path / "out"), wanted, rtol=1e-4, atol=1e-4)
    assert done.like.lost < 1e-4 < 0.01 < done.like.effect
    assert choose_template(tokenizer()).jinja in (tmp_path / "out/chat_template.jinja").read_text()
    assert 'PARAMETER stop "<|im_end|>"' in (tmp_path / "out/Modelfile").read_text()


def test_several_shards_without_the_bodys_name_and_two_adapters_with_weights(tmp_path) -> None:
    """The hub's GPT-2 leaves `transformer.` out of its keys."""
    base = save(tmp_path / "base", gpt2())
    whole = load_file(base / "model.safetensors")
    named = {key.removeprefix("transformer."): tensor for key, tensor in whole.items()}
    parts = {"model-1.safetensors": list(named)[:9], "model-2.safetensors": list(named)[9:]}
    for file, keys in parts.items():
        save_file({key: named[key] for key in keys}, base / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: file for file, keys in parts.items() for key in keys}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    (base / "model.safetensors").unlink()
    facts = {"target_modules": ["c_attn", "mlp.c_proj"], "fan_in_fan_out": True}
    one, _ = adapter(tmp_path / "one", gpt2(), 1, **facts)
    two, _ = adapter(tmp_path / "two", gpt2(), 2, **facts)
    done = bake(base, [(one, 0.5), (two, -0.25)], tmp_path / "out", None, "none")
    assert done.layers == 4
    assert done.like.lost < 1e-4
    assert not torch.allclose(loaded(tmp_path / "out"), loaded(base))


@pytest.mark.parametrize("bits", ["4bit", "8bit", "fp8"])
def test_the_tool_tells_what_16_bits_change_for_a_lora_trained_on_fewer(tmp_path, capsys, bits) -> None:
    base = save(tmp_path / "base", llama(hidden_size=64, intermediate_size=64).bfloat16())
    folder, _ = adapter(tmp_path / "lora", llama(hidden_size=64, intermediate_size=64))
    words = ["bake", str(base), str(folder), "-o", str(tmp_path / "out"), "--trained-on", bits]
    assert load_tool("lora").main(words) == 0
    said = capsys.readouterr().out
    nats = float(re.search(r"quantised base that was trained on: (\S+) nats a token", said)[1])  # pyright: ignore[reportOptionalSubscript]
    assert 1e-4 < nats < 5
    assert "done, 4 layers" in said
    kept = load_file(tmp_path / "out/model.safetensors")
    assert {tensor.dtype for tensor in kept.values()} == {torch.bfloat16}


def faint(tmp_path: Path) -> list[tuple[Path, float]]:
    return [(adapter(tmp_path / "lora", llama(), size=1e-3)[0], 1.0)]


def shared(tmp_path: Path) -> list[tuple[Path, float]]:
    save(tmp_path / "base", qwen2())
    return [(adapter(tmp_path / "lora", qwen2(), target_modules=["lm_head"])[0], 1.0)]


def other(tmp_path: Path) -> list[tuple[Path, float]]:
    return [(adapter(tmp_path / "lora", llama(hidden_size=48))[0], 1.0)]


def embedded(tmp_path: Path) -> list[tuple[Path, float]]:
    return [(adapter(tmp_path / "lora", llama(), target_modules=["embed_tokens"])[0], 1.0)]


def two_doras(tmp_path: Path) -> list[tuple[Path, float]]:
    return [(adapter(tmp_path / name, llama(), use_dora=True)[0], 1.0) for name in ("one", "two")]


def half_a_dora(tmp_path: Path) -> list[tuple[Path, float]]:
    return [(adapter(tmp_path / "lora", llama(), use_dora=True)[0], 0.5)]


def own_start(tmp_path: Path) -> list[tuple[Path, float]]:
    return [(adapter(tmp_path / "lora", llama(), init_lora_weights="pissa")[0], 1.0)]


def in_8_bits(tmp_path: Path) -> list[tuple[Path, float]]:
    facts = json.loads((tmp_path / "base/config.json").read_text())
    (tmp_path / "base/config.json").write_text(json.dumps({**facts, "quantization_config": {}}))
    return [(adapter(tmp_path / "lora", llama())[0], 1.0)]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (faint, "not written, as .* by .*% of what the adapters do"),
        (shared, "lm_head, which the base shares with its embeddings"),
        (other, "is it its base"),
        (embedded, "no factor of a linear layer"),
        (two_doras, "bake it alone"),
        (half_a_dora, "leave :0.5 out"),
        (own_start, "init_lora_weights: pissa"),
        (in_8_bits, "give the folder of the 16-bit model"),
    ],
)
@pytest.mark.filterwarnings(*TOLD)
def test_what_cannot_be_merged_is_refused_and_nothing_written(tmp_path, given, said) -> None:
    save(tmp_path / "base", llama().bfloat16())
    adapters = given(tmp_path)
    with pytest.raises(PatinaError, match=said):
        bake(tmp_path / "base", adapters, tmp_path / "out", None, "none")
    assert {path.name for path in tmp_path.iterdir()} <= {"base", "lora", "one", "two"}


@pytest.mark.parametrize("target", ["base", "lora", "own"])
def test_nothing_else_is_written_over(tmp_path, target) -> None:
    base = save(tmp_path / "base")
    folder, _ = adapter(tmp_path / "lora", llama())
    (tmp_path / "own").mkdir()
    with pytest.raises(PatinaError, match="so it is not written over"):
        bake(base, [(folder, 1.0)], tmp_path / target, None, "none")


def by_ollama(text: str, system: str, turns: list[Turn]) -> str:
    """What Ollama writes by a Modelfile's template: the few words of Go that these have."""
    (template,) = re.findall(r'TEMPLATE """(.*?)"""', text, re.DOTALL)
    head, _, loop = template.partition("{{ range .Messages }}")
    if choice := re.fullmatch(r"\{\{ if \.System \}\}(.*)\{\{ else \}\}(.*)\{\{ end \}\}", head, re.DOTALL):
        head = choice[1].replace("{{ .System }}", system) if system else choice[2]
    asked, answered = re.fullmatch(
        r'\{\{ if eq \.Role "user" \}\}(.*)\{\{ else if eq \.Role "assistant" \}\}(.*)\{\{ end \}\}\{\{ end \}\}',
        loop, re.DOTALL,
    ).groups()  # fmt: skip  # pyright: ignore[reportOptionalMemberAccess]
    written = [{"user": asked, "assistant": answered}[turn.role].replace("{{ .Content }}", turn.text) for turn in turns]
    return (head + "".join(written)).replace('{{ "{{" }}', "{{")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("system", ["", "Be {{ short }}."])
def test_ollama_asks_as_training_did(case, system) -> None:
    template = choose_template(made(*CASES[case][0]))
    turns = [Turn("user", "A?"), Turn("assistant", "B."), Turn("user", "C")]
    text, spoken = modelfile(template)
    assert spoken
    assert text.endswith(f'\nPARAMETER stop "{template.tokenizer.decode([template.end])}"\n')
    if system and case in ("gemma", "mistral"):
        assert "# The template takes no system text." in text
        return
    whole = [Turn("system", system), *turns] if system else turns
    assert by_ollama(text, system, turns) == template.asked(whole, "x")


def test_the_mark_that_begins_a_text_is_left_to_ollama_where_the_tokenizer_writes_it() -> None:
    words = made(*CASES["mistral"][0])
    from tokenizers.processors import TemplateProcessing

    at = words.bos_token_id
    words.backend_tokenizer.post_processor = TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", at)])
    assert 'TEMPLATE """{{ range' not in modelfile(choose_template(made(*CASES["mistral"][0])))[0]
    assert 'TEMPLATE """[INST] {{ range' in modelfile(choose_template(words))[0]


@pytest.mark.parametrize(
    ("jinja", "said"),
    [
        ("{{ strftime_now('%Y') }}", "writes the date"),
        ("{% if messages | length > 2 %}!{% endif %}{{ loop.index if loop }}", "otherwise"),
        ('{{ \'"""\' }}', "three quotes"),
    ],
)
def test_a_template_that_go_has_no_words_for_is_left_out_with_the_reason(jinja, said) -> None:
    own = choose_template(tokenizer()).jinja
    if "otherwise" in said:
        jinja, own = "", own.replace("message['content']", "message['content'] + ' ' * loop.index0")
    text, spoken = modelfile(choose_template(tokenizer(template=jinja + own)))
    assert not spoken
    assert 'TEMPLATE "' not in text
    assert re.search(f"# No TEMPLATE: the template .*{said}", text)
