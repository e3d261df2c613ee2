"""The end of a step: gradients joined, clipped and applied, without the host waiting for any of it on a GPU."""

import math
from collections.abc import Callable, Mapping
from functools import cached_property

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from patina.engine.arriving import Arriving
from patina.engine.scale import SMALLEST, LossScale
from patina.engine.team import add_up
from patina.errors import PatinaError

COUNT = "step"
"""What optimizers call the number of steps taken, kept on the host: a plain number, or torch's in a tensor."""


class Outcome:
    """What a step came to; on a GPU the numbers are on their way to the host while the next step is being computed."""

    def __init__(self, numbers: Tensor, judge: Callable[[float, float], None]) -> None:
        """`numbers` [3]: loss, norm and scale; `judge` is told the last two when they are first read."""
        self._numbers, self._judge = Arriving(numbers), judge

    def ready(self) -> bool:
        """Whether `read` need not wait."""
        return self._numbers.ready()

    def read(self) -> tuple[float, float]:
        """The step's mean loss and the gradient's norm before clipping, over all processes.

        Raises PatinaError, the weights being as they were before the step, when the norm is not finite in bf16 or
        fp32; also when the fp16 scale has collapsed.
        """
        return self._read

    @cached_property
    def _read(self) -> tuple[float, float]:
        loss, norm, scale = self._numbers.read()
        self._judge(norm, scale)
        return loss, norm


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
    ) -> None:
        """`advance` takes the optimizer's step; a `max_grad_norm` of 0 does not clip."""
        self.flats, self.optimizer, self.scale, self.team = list(flats.values()), optimizer, scale, team
        self.max_grad_norm, self.advance = max_grad_norm or math.inf, advance
        self._last: Outcome | None = None
        self._begun = False

    @torch.no_grad()
    def __call__(self, rates: Mapping[str, float], loss: Tensor) -> Outcome:
        """Clip all gradients together, step, clear them and `loss` (this process's part of the step's, 0-dim).

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
        norm = self._clip(gradients)
        numbers = torch.stack([loss, norm, self.scale.value])
        finite = norm.isfinite()
        undo = self._step(finite)
        self.scale.adjust(finite)
        for part in (*gradients, loss):
            part.zero_()
        self._last = Outcome(numbers, lambda norm, scale: self._judge(norm, scale, undo))
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

    def _judge(self, norm: float, scale: float, counted: bool) -> None:
        if counted and not math.isfinite(norm):
            for flat in self.flats:
                self.optimizer.state[flat][COUNT] -= 1
        if self.scale.enabled:
            if scale < SMALLEST:
                raise PatinaError(
                    "fp16 overflows at every step; write mixed_precision: bf16 (or fp32), or train slower"
                )
        elif not math.isfinite(norm):
            raise PatinaError(f"the gradient's norm is {norm}: nothing was updated; lower learning_rate")


def gradient(flat: nn.Parameter) -> Tensor:
    """The flat weight's gradient, which lives as long as the weight."""
    assert flat.grad is not None, "flat gradients live as long as the weights"
    return flat.grad
