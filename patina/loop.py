"""The training loop. There is one; every task goes through it."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from accelerate import Accelerator

from patina.errors import PatinaError
from patina.progress import Outcome, Progress, Reports
from patina.task import Batch, Task


class Step(Protocol):
    """What the loop needs of the engine; see `patina.engine.step.EagerStep`."""

    def add(self, batch: Batch, terms: int) -> None: ...

    def update(self, rates: Mapping[str, float]) -> Outcome: ...


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
    pause: Callable[[int], bool] = lambda step: False,
    stop: Callable[[], bool] = lambda: False,
) -> int:
    """Take the optimizer steps `start + 1 .. plan.steps`; `batches` must begin where step `start` ended.

    A step takes `accumulate` batches a process from the common stream, each process its own share. The loss is the
    mean over all terms of all of them, so that the number of processes and micro-batches does not change the gradient.
    `on_step` hears of each step as soon as its numbers are there, which on a GPU is when the next one is under way; of
    one at which to `pause`, before the next one begins: the weights are then that step's. Once a step ends with a
    wish to `stop`, which may come of what `on_step` heard, it is the last. Returns the step that was reached.
    """
    width = plan.accumulate * team.num_processes
    reports = Reports(on_step)
    try:
        for step in range(start + 1, plan.steps + 1):
            began = time.monotonic()
            window = list(islice(batches, width))
            if len(window) < width:
                raise PatinaError(f"step {step}: the data ended ({len(window)} of {width} batches were left)")
            terms = sum(task.count(batch) for batch in window)
            for batch in window[team.process_index :: team.num_processes]:
                step_once.add(batch, terms)
            factor = plan.factor(step)
            rates = {group: rate * factor for group, rate in plan.rates.items()}
            epoch = step * width / plan.batches_per_epoch
            reports.add(step_once.update(rates), step, epoch, rates, began, terms)
            reports.tell(wait=pause(step))
            if stop():
                reports.tell(wait=True)
                return step
    except KeyboardInterrupt:
        reports.tell(wait=True)
        raise
    reports.tell(wait=True)
    return plan.steps
