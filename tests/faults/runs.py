"""The tiny runs that are hurt, one of each mode, and what must be the same however often they were."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from patina.lora.file import read as read_lora
from tests.test_run import SMALL as PICTURES
from tests.test_run import pictures
from tests.test_text_run import prepare
from tests.tiny import save_sd15
from tests.tiny_text import save

STEPS = 6
FOLDER = Path("out/small")
DATES = ("ss_training_started_at", "ss_training_finished_at", "ss_session_id", "modelspec.date")
TIMED = ("seconds", "per_second", "memory")
"""Parts of the names of what a line of metrics says of time and memory, which no two runs have alike."""


@dataclass(frozen=True)
class Run:
    """A run in a folder of its own, where the working directory must be."""

    home: Path
    words: tuple[str, ...]


def of_pictures(home: Path) -> Run:
    """Two pictures, one kind of layer."""
    home.mkdir()
    pictures(home / "pictures", count=2)
    save_sd15(home / "base")
    (home / "run.yaml").write_text(PICTURES)
    words = ("lora_target=[to_q]", "train_text_encoder=false", "lora_rank=2", "batch_size=1", "dataset.workers=1")
    words += ("preview.every=6", "preview.steps=1", "preview.prompts=[a cat]")
    return Run(home, ("--config", "run.yaml", "resume=auto", *words))


def of_texts(home: Path) -> Run:
    """Nine rows in batches of two, three to measure on, and a LoRA that is smaller than the tokenizer beside it; a
    question that leaves room for an answer of a few tokens."""
    home.mkdir()
    prepare(home, save(home / "llama"))
    words = ("lora_rank=1", "lora_target=[q_proj]", "preview.every=3", f"preview.prompts=[{'x' * 210}]")
    return Run(home, ("--config", "run.yaml", "resume=auto", *words))


RUNS: dict[str, Callable[[Path], Run]] = {"pictures": of_pictures, "texts": of_texts}


def outcome() -> dict[str, Any]:
    """All that a finished run in the working directory leaves, dates and speeds aside."""
    lines = [json.loads(line) for line in (FOLDER / "metrics.jsonl").read_text().splitlines()]
    return {
        "files": {str(path.relative_to(FOLDER)): _content(path) for path in _kept()},
        "metrics": [{key: value for key, value in line.items() if not _timed(key)} for line in lines],
        "board": board(),
        "answers": answers.read_text() if (answers := FOLDER / "samples" / "answers.jsonl").is_file() else None,
    }


def board() -> dict[str, list[tuple[int, float]]]:
    """TensorBoard's curves, as it shows them."""
    events = EventAccumulator(str(FOLDER / "logs"), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not _timed(tag)]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def _kept() -> list[Path]:
    return sorted(path for path in FOLDER.rglob("*") if path.is_file() and _is_result(path.relative_to(FOLDER)))


def _is_result(path: Path) -> bool:
    """Not what was left half-written, nor the cache, the previews, nor what is compared line by line."""
    hidden = any(part.startswith(".") for part in path.parts)
    return not hidden and path.parts[0] not in ("logs", "metrics.jsonl", "cache", "samples", "small.png", "report.html")


def _content(path: Path) -> object:
    """Its bytes; of a LoRA file the tensors' and the header, dates aside."""
    if path.suffix != ".safetensors" or path.parent != FOLDER:
        return path.read_bytes()
    told = {key: value for key, value in read_lora(path).metadata.items() if key not in DATES}
    content = path.read_bytes()
    return told, content[8 + int.from_bytes(content[:8], "little") :]


def _timed(name: str) -> bool:
    return any(part in name for part in TIMED)
