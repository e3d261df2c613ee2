"""The numbers of a run in `metrics.jsonl`: a line a step, each complete as soon as the step is.

On a GPU a line has `memory` too: the most bytes that torch's allocator had given out at a time since the last line, and
in the first line since the start.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from patina.progress import Progress
from patina.watch.smoothed import Smoothed
from patina.watch.tail import Tail, Tailed


class MetricsFile(Tailed):
    """Appends to `metrics.jsonl`; a context manager. Numbers that are not finite are written as null."""

    def __init__(self, path: Path, start: int, unit: str = "images") -> None:
        """Go on after step `start`: later lines, and one that a crash tore, are dropped. Raises OSError.

        `unit` is what a step's samples are. Only reading raises; what cannot be written, `Tail` keeps.
        """
        self._speed = f"{unit.replace(' ', '_')}_per_second"
        kept = _lines_until(path, start)
        self._smoothed = Smoothed()
        for _, facts in kept:  # all of them, so that the mean goes on to the last bit
            self._smoothed.add(math.nan if facts["loss"] is None else facts["loss"])
        self._tail = Tail(path, "".join(f"{line}\n" for line, _ in kept).encode())

    def add(self, progress: Progress, more: Mapping[str, float] = MappingProxyType({})) -> float:
        """Write the step's line, with what `more` is known of it, and return the smoothed loss."""
        smoothed = self._smoothed.add(progress.loss)
        facts = _facts(progress, smoothed) | {self._speed: _finite(samples_per_second(progress))}
        facts |= {name.replace("/", "_"): _finite(number) for name, number in more.items()}
        self._tail.add(f"{json.dumps(facts, allow_nan=False)}\n".encode())
        return smoothed


def samples_per_second(progress: Progress) -> float:
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
