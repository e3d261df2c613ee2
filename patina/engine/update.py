"""The end of a step: gradients joined, clipped and applied, without the host waiting for any of it on a GPU."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from patina.engine.arriving import Arriving
from patina.engine.average import Average
from patina.engine.scale import SMALLEST, LossScale
from patina.engine.team import add_up
from patina.errors import PatinaError

NAMED = 20
"""Rows of a batch that a message names."""
COUNT = "step"
"""What optimizers call the number of steps taken, kept on the host: a plain number, or torch's in a tensor."""


class Outcome:
    """What a step came to; on a GPU the numbers are on their way to the host while the next step is being computed."""

    def __init__(self, numbers: Tensor, judge: Callable[[Sequence[float]], None]) -> None:
        """`numbers`: loss, norm, and others that only `judge` knows, which is told all when they are first read."""
        self._numbers, self._judge = Arriving(numbers), judge

    def ready(self) -> bool:
        """Whether `read` need not wait."""
        return self._numbers.ready()

    def read(self) -> tuple[float, float]:
        """The step's mean loss and the gradient's norm before clipping, over all processes.

        Raises PatinaError, the weights being as they were before the step, when loss or norm is not finite in bf16 or
        fp32, and more such steps were met than may be skipped; also when the fp16 scale has collapsed.
        """
        return self._read

    @cached_property
    def _read(self) -> tuple[float, float]:
        numbers = self._numbers.read()
        self._judge(numbers)
        return numbers[0], numbers[1]


class Bad(NamedTuple):
    """What is done about steps whose loss or gradient is not finite, in bf16 and fp32."""

    skip: int
    """So many are left out, each of which `say` tells of; one more ends the run."""
    say: Callable[[str], object]
    weight: Callable[[int, int], str]
    """Number of a flat weight and a position in it -> the layer's weight that is there."""


class Update:
    """Applies flat gradients to flat weights, and leaves out a step whose gradient is not finite."""

    def __init__(
        self,
        flats: Mapping[str, nn.Parameter],
        optimizer: Optimizer,
        scale: LossScale,
        team: Accelerator,
        max_grad_norm: float,
        advance: Callable[[], object],
        bad: Bad,
        average: Average | None = None,
    ) -> None:
        """`advance` takes the optimizer's step; a `max_grad_norm` of 0 does not clip; `average` is told of each."""
        self.flats, self.optimizer, self.scale, self.team = list(flats.values()), optimizer, scale, team
        self.max_grad_norm, self.advance = max_grad_norm or math.inf, advance
        self._bad, self._skipped, self._average = bad, 0, average
        self._last: Outcome | None = None
        self._begun = False

    @torch.no_grad()
    def __call__(self, rates: Mapping[str, float], loss: Tensor, rows: Sequence[str] = ()) -> Outcome:
        """Clip all gradients together, step, clear them and `loss` (this process's part of the step's, 0-dim).

        `rows`: the names of what this process added, for messages.

        On a GPU this reads what the step before came to, which has long been there, and the device has this step's
        work to go on with. What `Outcome.read` raises is therefore raised here, of the step before; on a CPU, of this.
        """
        if self._last:
            self._last.read()
        for group, rate in zip(self.optimizer.param_groups, rates.values(), strict=True):
            group["lr"] = rate
        gradients = [gradient(flat) for flat in self.flats]
        if self.team.num_processes > 1:
            for part in (*gradients, loss):
                add_up(part)
        spots = [_first_bad(part) for part in gradients]
        norm = self._clip(gradients)
        # double, which holds every position
        numbers = torch.stack([part.double() for part in (loss, norm, self.scale.value, *spots)])
        finite = norm.isfinite() & loss.isfinite()
        undo = self._step(finite)
        if self._average:
            self._average.note(finite)
        self.scale.adjust(finite)
        for part in (*gradients, loss):
            part.zero_()
        self._last = Outcome(numbers, lambda numbers: self._judge(numbers, undo, rows))
        if self._last.ready():
            self._last.read()
        return self._last

    def _clip(self, gradients: list[Tensor]) -> Tensor:
        if self.scale.enabled:
            for part in gradients:
                part.div_(self.scale.value)  # exact, since the scale is a power of two
        norm = nn.utils.get_total_norm(gradients)
        nn.utils.clip_grads_with_norm_(self.flats, self.max_grad_norm, norm)
        return norm

    def _step(self, finite: Tensor) -> bool:
        """Take the optimizer's step if `finite`; returns whether it has counted a step that it may not have taken.

        It is taken in any case, and what it changed is put back where it should not have been: to ask a GPU first would
        be to wait. The first step of a process makes the optimizer's state, or moves it here: there it is asked.
        """
        if not self._begun:
            if finite.item():
                self.advance()
                self._begun = True
            return False
        kept = [flat.data for flat in self.flats] + [
            part
            for flat in self.flats
            for name, part in self.optimizer.state[flat].items()
            if name != COUNT and isinstance(part, Tensor)
        ]
        before = [part.clone() for part in kept]
        self.advance()
        for part, old in zip(kept, before, strict=True):
            torch.where(finite, part, old, out=part)
        return True

    def _judge(self, numbers: Sequence[float], counted: bool, rows: Sequence[str]) -> None:
        loss, norm, scale, *spots = numbers
        finite = math.isfinite(norm) and math.isfinite(loss)
        if counted and not finite:
            for flat in self.flats:
                self.optimizer.state[flat][COUNT] -= 1
        if self.scale.enabled:
            if scale < SMALLEST:
                raise PatinaError(
                    "fp16 overflows at every step; write mixed_precision: bf16 (or fp32), or train slower"
                )
        elif not finite:
            self._leave_out(f"the loss is {loss:g} and the gradient's norm is {norm:g}{self._where(spots, rows)}")

    def _leave_out(self, what: str) -> None:
        if self._skipped == self._bad.skip:
            more = f" after {self._skipped} steps were left out" if self._skipped else ""
            raise PatinaError(
                f"{what}: nothing was updated; lower learning_rate, leave out what these are of where one is damaged, "
                f"or write a larger engine.skip_bad_steps{more}"
            )
        self._skipped += 1
        self._bad.say(f"{what}: step left out, {self._skipped} of {self._bad.skip} that may be")

    def _where(self, spots: Sequence[float], rows: Sequence[str]) -> str:
        found = next(((number, int(spot)) for number, spot in enumerate(spots) if spot >= 0), None)
        first = f", first in {self._bad.weight(*found)}" if found else ""
        more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
        return first + (f", of {', '.join(rows[:NAMED])}{more}" if rows else "")


def _first_bad(part: Tensor) -> Tensor:
    """The first position that is not finite, 0-dim; -1 where all are."""
    bad = ~part.isfinite()
    return torch.where(bad.any(), bad.to(torch.uint8).argmax(), -1)


def gradient(flat: nn.Parameter) -> Tensor:
    """The flat weight's gradient, which lives as long as the weight."""
    assert flat.grad is not None, "flat gradients live as long as the weights"
    return flat.grad
