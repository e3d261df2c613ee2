"""However a run is set up, what goes on from any of its checkpoints, and from theirs, ends with the same bytes."""

from pathlib import Path

import pytest

from patina import checkpoint, configfile
from patina.run import run
from tests.faults import runs

# peft asks transformers' models for a property that transformers is renaming
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
CASES = {
    "texts": {
        "eight bits": ["lora_rank=8", "lora_target=full"],
        "accumulation": ["gradient_accumulation_steps=2", "scheduler=linear", "warmup_steps=3"],
        "adamw": ["optimizer=adamw", "max_grad_norm=0.1"],
        "dropout": ["network.dropout=0.3"],
        "bf16": ["mixed_precision=bf16"],
        "packed": ["text.packing=true", "max_length=64"],
        "rslora": ["network.rslora=true", "lora_rank=2", "seed=7"],
        "recomputed": ["gradient_checkpointing=true"],
        "averaged": ["ema_decay=0.9", "validation.patience=2", "validation.every=2", "validation_data=other.jsonl"],
    },
    "pictures": {
        "accumulation": ["gradient_accumulation_steps=2", "dataset.repeats=2", "noise.noise_offset=0.1"],
        "no buckets": ["dataset.buckets=false", "network.algo=loha", "mixed_precision=bf16"],
        "dropout": ["network.dropout=0.3", "optimizer=adamw", "network.algo=dora"],
        "wording": ["dataset.shuffle_tags=true", "dataset.tag_dropout=0.3", "dataset.caption_dropout=0.3"],
        "averaged": ["ema_decay=0.5", "mixed_precision=bf16"],
        "mirrored": ["dataset.flip=true", "validation.split=0.3", "save_precision=fp32"],
    },
}


@pytest.fixture(scope="module")
def homes(tmp_path_factory) -> dict[str, runs.Run]:
    home = tmp_path_factory.mktemp("matrix")
    return {mode: make(home / mode) for mode, make in runs.RUNS.items()}


def trained(words: list[str], name: str, *more: str) -> dict[str, bytes]:
    """What the last checkpoint of a run into `out/NAME` holds."""
    last_of_each = {word.partition("=")[0]: word for word in (*words, f"output_dir=out/{name}", *more)}
    run(configfile.load(Path("run.yaml"), list(last_of_each.values())))
    last = checkpoint.place(Path("out", name, "checkpoints"), runs.STEPS)
    return {path.name: path.read_bytes() for path in last.iterdir()}


@pytest.mark.parametrize(("mode", "case"), [(mode, case) for mode, cases in CASES.items() for case in cases])
def test_a_second_and_a_third_start_end_with_the_same_bytes(mode, case, homes, monkeypatch) -> None:
    monkeypatch.chdir(homes[mode].home)
    kept = [word for word in homes[mode].words if "=" in word and not word.startswith(("resume", "preview"))]
    words = [*kept, *CASES[mode][case]]
    if mode == "pictures":
        words.append("dataset.cache_dir=cache")
    whole = trained(words, f"{case}-whole")
    more = ["dataset.workers=3"] if mode == "pictures" else []  # how it is read may change
    second = trained(words, f"{case}-second", f"resume=out/{case}-whole/checkpoints/step-000002", *more)
    third = trained(words, f"{case}-third", f"resume=out/{case}-second/checkpoints/step-000004")
    assert second == whole
    assert third == whole
    assert len(whole) == 3
