"""The numbers of a run in `metrics.jsonl`: a line a step, each complete as soon as the step is.

On a GPU a line has `memory` too: the most bytes that torch's allocator had given out at a time since the last line, and
in the first line since the start.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Self

import torch

from patina.files import write_text
from patina.progress import Progress

FACTOR = 0.98
"""Share of the old value in each new smoothed loss: about the last fifty steps count."""


class Smoothed:
    """An exponential mean without the pull towards its start (Kingma and Ba 2015, section 3)."""

    def __init__(self, factor: float = FACTOR) -> None:
        self.factor = factor
        self._sum = self._weight = 0.0

    @property
    def value(self) -> float:
        """The mean so far; NaN before the first finite number."""
        return self._sum / self._weight if self._weight else math.nan

    def add(self, number: float) -> float:
        """Take in a number and return the mean; what is not finite is passed over, one NaN would stay forever."""
        if math.isfinite(number):
            self._sum = self.factor * self._sum + (1 - self.factor) * number
            self._weight = self.factor * self._weight + (1 - self.factor)
        return self.value


class MetricsFile:
    """Appends to `metrics.jsonl`; a context manager. Numbers that are not finite are written as null."""

    def __init__(self, path: Path, start: int) -> None:
        """Go on after step `start`: later lines, and one that a crash tore, are dropped. Raises OSError."""
        kept = _lines_until(path, start)
        write_text(path, "".join(f"{line}\n" for line, _ in kept))
        self._smoothed = Smoothed()
        for _, facts in kept:  # all of them, so that the mean goes on to the last bit
            self._smoothed.add(math.nan if facts["loss"] is None else facts["loss"])
        self._file = path.open("a", encoding="utf-8", newline="\n")

    def add(self, progress: Progress) -> float:
        """Write the step's line and return the smoothed loss."""
        smoothed = self._smoothed.add(progress.loss)
        self._file.write(json.dumps(_facts(progress, smoothed), allow_nan=False) + "\n")
        self._file.flush()
        return smoothed

    def close(self) -> None:
        """Nothing more will be written."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def images_per_second(progress: Progress) -> float:
    """Speed of one step; NaN for one that took no time."""
    return progress.samples / progress.seconds if progress.seconds > 0 else math.nan


def _facts(progress: Progress, smoothed: float) -> dict[str, Any]:
    rates = {component: _finite(rate) for component, rate in progress.learning_rates.items()}
    return {
        "step": progress.step,
        "epoch": round(progress.epoch, 6),
        "loss": _finite(progress.loss),
        "loss_smoothed": _finite(smoothed),
        "learning_rate": next(iter(rates.values())),
        "learning_rates": rates,
        "grad_norm": _finite(progress.grad_norm),
        "seconds": round(progress.seconds, 6),
        "images_per_second": _finite(images_per_second(progress)),
        **_memory(),
    }


def _memory() -> dict[str, int]:
    if not torch.cuda.is_initialized():  # also where there is a GPU and the run was told to leave it alone
        return {}
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return {"memory": peak}


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _lines_until(path: Path, start: int) -> list[tuple[str, dict[str, Any]]]:
    """The whole lines of steps 1 to `start`, each with what it says."""
    if start == 0 or not path.is_file():
        return []
    # Not splitlines(): that also splits at characters which JSON allows inside a string.
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    parsed = ((line, _parsed(line)) for line in lines)
    return [(line, facts) for line, facts in parsed if facts is not None and facts["step"] <= start]


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        facts = json.loads(line)
    except ValueError:
        return None
    return facts if isinstance(facts, dict) and facts.keys() >= {"step", "loss"} else None
