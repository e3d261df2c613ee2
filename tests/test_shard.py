"""A model that two processes share out learns what it does whole in each, to the last bit."""

import re
from pathlib import Path

import pytest

from patina.configfile import load
from patina.errors import PatinaError
from patina.run import run
from tests.test_text_run import SMALL, metrics, prepare
from tests.tiny_text import save
from tests.toolbox import team_of_two

LONGEST = 120
"""Seconds that a team may take; it takes ten."""


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    prepare(tmp_path, save(tmp_path / "model"))
    kept = [line for line in SMALL.splitlines() if not line.startswith("validation_data")]
    (tmp_path / "run.yaml").write_text("\n".join([*kept, "optimizer: adamw"]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(*words: str) -> None:
    with team_of_two("--config", "run.yaml", *words) as team:
        for process in team:
            process.join(LONGEST)
        said = Path("said0/err").read_text() + Path("said1/err").read_text()
        assert [process.exitcode for process in team] == [0, 0], said


@pytest.mark.parametrize(
    ("words", "most"),
    [((), 80), (("quantize=4bit", "gradient_checkpointing=true"), 96), (("quantize=fp8",), 96)],
    ids=["lora", "qlora", "fp8"],
)
def test_a_shared_model_learns_what_a_whole_one_does(place, words, most) -> None:
    """Embeddings, output layer and adapters are whole in each process: of 4 bits a layer has few."""
    train("output_dir=out/whole", *words)
    train("output_dir=out/shared", "engine.shard=true", *words)
    kept = re.search(r"each process keeps (\d+)% of the model", Path("said0/out").read_text())
    assert kept
    assert 50 <= int(kept[1]) <= most
    whole, shared = (Path("out", name, f"{name}/adapter_model.safetensors") for name in ("whole", "shared"))
    assert shared.read_bytes() == whole.read_bytes()
    losses = [[line["loss"] for line in metrics(f"out/{name}")] for name in ("whole", "shared")]
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0]


def test_one_process_has_nobody_to_share_with(place) -> None:
    with pytest.raises(PatinaError, match=r"engine\.shard: one process .* accelerate launch --num_processes 2"):
        run(load(Path("run.yaml"), ["engine.shard=true"]))


def test_nothing_is_measured_with_a_shared_model(place) -> None:
    with pytest.raises(PatinaError, match=r"engine\.shard: true leaves no process a whole model to measure with"):
        load(Path("run.yaml"), ["engine.shard=true", "validation_data=other.jsonl"])
