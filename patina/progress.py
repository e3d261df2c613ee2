"""What the loop reports of each optimizer step, and when."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Progress:
    """One optimizer step, as it was over all processes."""

    step: int
    """Counted from 1 over the whole run, however often it was resumed."""
    epoch: float
    """Passes over the data so far, with the part of the one under way."""
    loss: float
    """Mean over the step's pictures; not finite where the step overflowed."""
    learning_rates: Mapping[str, float]
    """By group of weights; the first is the denoiser's."""
    grad_norm: float
    """Length of the gradient before clipping."""
    seconds: float
    """What this step took."""
    samples: int
    """Pictures in this step."""


class Outcome(Protocol):
    """What a step came to, which a GPU may yet be computing."""

    def ready(self) -> bool:
        """Whether `read` need not wait."""
        ...

    def read(self) -> tuple[float, float]:
        """Mean loss, and the gradient's norm before clipping."""
        ...


class Reports:
    """Tells of steps in their order, each as soon as its outcome is there."""

    def __init__(self, on_step: Callable[[Progress], None]) -> None:
        self._on_step = on_step
        self._under_way: deque[tuple[Outcome, float, Callable[[float, float, float], Progress]]] = deque()
        self._told = 0.0

    def add(self, outcome: Outcome, step: int, epoch: float, rates: Mapping[str, float], began: float, samples: int):
        """Take note of a step that began at `began` (`time.monotonic`)."""

        def progress(loss: float, norm: float, seconds: float) -> Progress:
            return Progress(step, epoch, loss, rates, norm, seconds, samples)

        self._under_way.append((outcome, began, progress))

    def tell(self, wait: bool) -> None:
        """Tell of the steps that are done; where `wait`, of all."""
        while self._under_way and (wait or self._under_way[0][0].ready()):
            outcome, began, progress = self._under_way.popleft()
            loss, norm = outcome.read()
            before, self._told = self._told, time.monotonic()
            # a step is given to a GPU while the one before is computed there: it takes its time from that one's end
            self._on_step(progress(loss, norm, self._told - max(began, before)))
