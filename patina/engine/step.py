"""One training step, eager: the reference that faster ways of doing it must agree with."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from patina.engine.average import Average
from patina.engine.beside import beside
from patina.engine.flat import weight_at
from patina.engine.halves import Halves
from patina.engine.precision import Precision
from patina.engine.scale import LossScale
from patina.engine.update import Bad, Outcome, Update, gradient
from patina.optim import advance as take_step
from patina.task import Batch, Task


class EagerStep:
    """Forward and backward of micro-batches into flat gradients, then one update of the flat weights."""

    passes = 1
    """Micro-batches after which no more memory is taken."""

    def __init__(
        self,
        task: Task,
        flats: Mapping[str, nn.Parameter],
        optimizer: Optimizer,
        precision: Precision,
        team: Accelerator,
        max_grad_norm: float,
        *,
        advance: Callable[[], object] | None = None,
        halves: Halves | None = None,
        average: Average | None = None,
        skip: int = 0,
        say: Callable[[str], object] = lambda text: None,
    ) -> None:
        """`advance` takes the optimizer's step (None: the usual way); with `halves` nothing is cast on the way.
        `average` takes note of each step.

        `skip`: steps that may be left out since their numbers are not finite, which `say` tells of.
        """
        self.task, self.flats, self.optimizer = task, flats, optimizer
        self.precision, self.halves, self.average = precision, halves, average
        self.most: int | None = None
        """Rows of a batch that are computed at a time; None: all."""
        self.scaler = LossScale(precision.device, enabled=precision.dtype == torch.float16)
        bad = Bad(skip, say, lambda flat, spot: weight_at(task.adapted(), list(flats.values())[flat], spot))
        self._update = Update(
            flats, optimizer, self.scaler, team, max_grad_norm, advance or partial(take_step, optimizer), bad, average
        )
        self._rows: list[str] = []
        self._loss = torch.zeros((), device=precision.device)
        self._terms = torch.ones((), device=precision.device)

    def add(self, batch: Batch, terms: int) -> None:
        """Add the gradient of the batch's loss, divided by the whole step's `terms`."""
        self.divide_by(terms)
        for part in self.parts(batch):
            self.compute(moved(part, self.precision.device))

    def parts(self, batch: Batch) -> list[Batch]:
        """The batch made ready, in as many parts as it takes; its rows' names are kept for messages."""
        self._rows += batch.get("names", ())
        return self._prepared(batch)

    def _prepared(self, batch: Batch) -> list[Batch]:
        prepared = self.task.prepare(batch)
        return [prepared] if self.most is None else self.task.split(prepared, self.most)

    @torch.no_grad()
    def measure(self, batch: Batch) -> float:
        """The batch's loss, summed over its terms, of which nothing is learned. Between two steps alone."""
        with (
            self.halves.in_place() if self.halves else nullcontext(),
            self.precision.autocast(enabled=self.halves is None),
        ):
            return sum(float(self.task(moved(part, self.precision.device))) for part in self._prepared(batch))

    def clear(self) -> None:
        """Forget what was added since the last update."""
        for flat in self.flats.values():
            gradient(flat).zero_()
        self._loss.zero_()
        self._rows = []

    def release(self) -> None:
        """Give back the memory that is kept for steps to come."""
        if self.precision.device.type == "cuda":
            torch.cuda.empty_cache()

    def update(self, rates: Mapping[str, float]) -> Outcome:
        """Join the processes' gradients, clip them together, step and clear; `rates` by group. See `Update`."""
        rows, self._rows = self._rows, []
        return self._update(rates, self._loss, rows)

    def divide_by(self, terms: int) -> None:
        """What the losses that follow are divided by."""
        self._terms.fill_(terms)

    def compute(self, prepared: Batch) -> None:
        """A micro-batch, its tensors on the device: forward, backward, and its loss added to the step's.

        A function of tensors alone that waits for nothing, so that a GPU can record it.
        """
        with self.halves.in_place() if self.halves else nullcontext():
            with self.precision.autocast(enabled=self.halves is None):
                loss = self.task(prepared) / self._terms
            with beside(self.precision.device):
                (loss * self.scaler.value).backward()
        self._loss.add_(loss.detach())


def moved(prepared: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on the device, on their way there while the host goes on."""
    return {name: sent(part, device) if isinstance(part, Tensor) else part for name, part in prepared.items()}


def sent(part: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host's on the device; from memory that stays where it is, so that nobody waits."""
    return part if device.type == "cpu" else part.pin_memory().to(device, non_blocking=True)
