"""What a set of texts asks for is advised with reasons, and presets give way to what a config says."""

from pathlib import Path

import pytest
import yaml
from transformers import GPT2Config, GPT2LMHeadModel

from patina import configfile
from patina.configfile import ConfigError
from patina.configpresets import PRESETS, says
from patina.errors import PatinaError
from patina.lora import inject
from patina.run import run
from patina.text.advice import Facts, advise, as_yaml
from tests.test_forecast import plan
from tests.test_text_run import prepare
from tests.tiny_text import built, save

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def facts(rows: int, length: int = 100, **more) -> Facts:
    known = {"trained": rows * length // 2, "json": False, "room": 2048, "sight": 4096, "measured": False}
    return Facts(rows=rows, lengths=[length] * rows, **{**known, **more})


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (facts(40), {"lora_rank": 8, "epochs": 10, "learning_rate": 1e-4, "network.dropout": 0.05, "batch_size": 2}),
        (facts(147, json=True), {"lora_rank": 8, "epochs": 6, "batch_size": 4, "validation.patience": 3}),
        (facts(3000), {"lora_rank": 16, "epochs": 3, "learning_rate": 2e-4, "gradient_accumulation_steps": 4}),
        (facts(500, length=2000), {"lora_rank": 32, "lora_alpha": 64}),
        (facts(20_000, measured=True), {"epochs": 1, "network.dropout": 0.0}),
        (facts(300, length=3000), {"max_length": 3008}),
        (facts(300, length=9000), {"max_length": 4096}),
    ],
    ids=["forty", "json", "thousands", "thoughts", "many", "cut", "beyond"],
)
def test_rows_tokens_and_answers_decide(known, expected) -> None:
    tips = {tip.key: tip.value for tip in advise(known)}
    assert {key: tips[key] for key in expected} == expected
    assert ("validation.split" in tips) == (known.rows >= 50 and not known.measured)
    assert ("max_length" in tips) == (known.lengths[0] > known.room)
    steps = known.rows * tips["epochs"] / tips["batch_size"] / tips["gradient_accumulation_steps"]
    assert steps >= 200 or tips["epochs"] == 10


def test_what_is_so_already_is_not_advised_and_what_is_written_is_named() -> None:
    tips = advise(facts(3000))
    now = {tip.key: tip.value for tip in tips} | {"lora_rank": 64, "epochs": 10, "validation.split": None}
    lines = as_yaml(tips, now, ["lora_rank"])
    assert yaml.safe_load("\n".join(lines)) == {"lora_rank": 16, "epochs": 3, "validation": {"split": 0.1}}
    assert lines[0].endswith("8 to 16 (the config says 64)")
    assert "config says" not in lines[1]


def test_a_plan_ends_with_lines_that_a_config_takes(tmp_path, monkeypatch, capsys) -> None:
    prepare(tmp_path, save(tmp_path / "llama"))
    monkeypatch.chdir(tmp_path)
    said = plan(monkeypatch, capsys)
    at = said.index("  advice    of this set, for the config:")
    advised = yaml.safe_load("\n".join(said[at + 1 : -1]))
    assert {"lora_rank", "learning_rate", "network"} <= advised.keys()
    kept = {key: value for key, value in yaml.safe_load(Path("run.yaml").read_text()).items() if key != "max_steps"}
    kept["network"] = {**kept.get("network", {}), **advised.pop("network", {})}
    Path("next.yaml").write_text(yaml.safe_dump({**kept, **advised, "output_dir": "out/next"}))
    taken = configfile.load(Path("next.yaml"))
    plain = {key: value for key, value in advised.items() if not isinstance(value, dict)}
    assert {key: taken.model_dump()[key] for key in plain} == plain


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_fills_what_is_not_written(name, tmp_path, monkeypatch, capsys) -> None:
    prepare(tmp_path, save(tmp_path / "llama"))
    monkeypatch.chdir(tmp_path)
    plainly = [line for line in Path("run.yaml").read_text().splitlines() if not line.startswith(("lora_", "network"))]
    Path("run.yaml").write_text("\n".join([*plainly, f"preset: {name}", "lora_rank: 3", ""]))
    config = configfile.load(Path("run.yaml"), ["max_steps=1", "preview.every=0"])
    _, alpha, targets, dropout = PRESETS[name]
    assert (config.lora_rank, config.alpha, config.lora_target, config.network.dropout) == (3, alpha, targets, dropout)
    assert "lora_rank is 3, as the config says" in (says(config) or "")
    Path("again.yaml").write_text(configfile.dump(config))
    assert configfile.load(Path("again.yaml")) == config
    run(config)
    assert f"preset: {name}: lora_alpha {alpha:g}, lora_target [q_proj" in capsys.readouterr().out


def test_a_preset_is_for_conversations_and_for_models_that_have_its_layers(tmp_path) -> None:
    (tmp_path / "run.yaml").write_text("train_data_dir: a\nbase_model: b\noutput_dir: c\npreset: simple\n")
    with pytest.raises(ConfigError, match=r"run.yaml:4: preset: "):
        configfile.load(tmp_path / "run.yaml")
    shape = {"n_embd": 32, "n_layer": 1, "n_head": 2}
    other = built(GPT2LMHeadModel, GPT2Config, 0, shape)
    with pytest.raises(PatinaError, match="'q_proj' names no layer of this GPT2LMHeadModel"):
        inject.adapt(other, PRESETS["simple"][2], 4, 8.0, 0)
