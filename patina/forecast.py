"""What a run would take, of time and of memory, measured on its largest batch; nothing is learned and nothing kept."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import torch
from tqdm import tqdm

if TYPE_CHECKING:
    from patina.engine.ladder import Ladder
    from patina.loop import Plan
    from patina.task import Batch

TURNS = {"cuda": (4, 3), "cpu": (0, 1)}
"""Device -> steps taken first, while libraries load and recordings are made, and steps timed."""


class Measured(NamedTuple):
    """What one step took."""

    seconds: float
    steps: int
    """How many were timed; `seconds` is their mean."""
    peak: int | None
    """Bytes on the GPU at most, the model's own among them; None on a CPU."""
    card: int | None
    """Bytes that the GPU has."""


def measure(step: Ladder, batch: Batch, plan: Plan) -> Measured:
    """Take a few real steps at a learning rate of 0. Raises PatinaError where one needs more memory than there is."""
    first, timed = TURNS[step.device.type]
    on_gpu = step.device.type == "cuda"
    if on_gpu:
        step.look_ahead(batch)
        step.release()  # its recording, so that what making it takes is counted
        torch.cuda.reset_peak_memory_stats(step.device)
    for _ in range(first):
        _take(step, batch, plan)
    began = time.perf_counter()
    for _ in range(timed):
        _take(step, batch, plan)
    seconds = (time.perf_counter() - began) / timed
    peak = torch.cuda.max_memory_allocated(step.device) if on_gpu else None
    card = torch.cuda.mem_get_info(step.device)[1] if on_gpu else None
    return Measured(seconds, timed, peak, card)


def lines(measured: Measured, left: int) -> list[str]:
    """The measurement for the user; `left` steps are still to be taken."""
    of = "one step" if measured.steps == 1 else f"{measured.steps} steps"
    whole = tqdm.format_interval(measured.seconds * left)
    found = [
        f"time      {measured.seconds:.3g} s a step, by {of} of the largest batch: {whole} for {left} steps at most, "
        "previews and saves left out"
    ]
    if measured.peak is not None and measured.card is not None:
        peak, card = (size / 2**30 for size in (measured.peak, measured.card))
        found.append(f"memory    {peak:.1f} of the card's {card:.1f} GiB at the most")
    return found


def _take(step: Ladder, batch: Batch, plan: Plan) -> None:
    for _ in range(plan.accumulate):
        step.add(batch, plan.accumulate * step.eager.task.count(batch))
    step.update(dict.fromkeys(plan.rates, 0.0)).read()
