"""The training loop. There is one; every task goes through it."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from accelerate import Accelerator
from torch import Tensor

from patina.errors import PatinaError
from patina.progress import Progress
from patina.task import Batch, Task


class Step(Protocol):
    """What the loop needs of the engine; see `patina.engine.step.EagerStep`."""

    def add(self, batch: Batch, terms: int) -> Tensor: ...

    def update(self, rates: Mapping[str, float]) -> float: ...


@dataclass(frozen=True)
class Plan:
    """How far and how fast: all that the loop is told of a run."""

    steps: int
    """Optimizer steps of the whole run."""
    accumulate: int
    """Micro-batches a process adds up in one step."""
    batches_per_epoch: int
    rates: Mapping[str, float]
    """Peak learning rate by group of weights; a component's own group has its name."""
    factor: Callable[[int], float]
    """Step -> what the peak rates are multiplied by."""


def train(
    task: Task,
    batches: Iterator[Batch],
    step_once: Step,
    plan: Plan,
    team: Accelerator,
    *,
    start: int = 0,
    on_step: Callable[[Progress], None],
) -> None:
    """Take the optimizer steps `start + 1 .. plan.steps`; `batches` must begin where step `start` ended.

    A step takes `accumulate` batches a process from the common stream, each process its own share. The loss is the
    mean over all terms of all of them, so that the number of processes and micro-batches does not change the gradient.
    """
    width = plan.accumulate * team.num_processes
    for step in range(start + 1, plan.steps + 1):
        began = time.monotonic()
        window = list(islice(batches, width))
        if len(window) < width:
            raise PatinaError(f"step {step}: the data ended ({len(window)} of {width} batches were left)")
        terms = sum(task.count(batch) for batch in window)
        losses = [step_once.add(batch, terms) for batch in window[team.process_index :: team.num_processes]]
        factor = plan.factor(step)
        rates = {group: rate * factor for group, rate in plan.rates.items()}
        norm = step_once.update(rates)
        loss = team.reduce(sum(losses[1:], losses[0]), reduction="sum")
        assert isinstance(loss, Tensor)
        epoch = step * width / plan.batches_per_epoch
        on_step(Progress(step, epoch, loss.item(), rates, norm, time.monotonic() - began, terms))
