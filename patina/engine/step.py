"""One training step, eager: the reference that faster ways of doing it must agree with."""

import math
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from patina.engine.precision import Precision
from patina.errors import PatinaError
from patina.task import Batch, Task

SMALLEST_SCALE = 2.0**-10
"""An fp16 loss scale below this has met nothing but overflows for thousands of steps."""


class EagerStep:
    """Forward and backward of micro-batches into flat gradients, then one update of the flat weights."""

    def __init__(
        self,
        task: Task,
        flats: Mapping[str, nn.Parameter],
        optimizer: Optimizer,
        precision: Precision,
        team: Accelerator,
        max_grad_norm: float,
    ) -> None:
        self.task, self.flats, self.optimizer, self.team = task, flats, optimizer, team
        self.precision, self.scaler = precision, precision.scaler()
        self.max_grad_norm = max_grad_norm or math.inf

    def add(self, batch: Batch, terms: int) -> Tensor:
        """Add the gradient of the batch's loss, divided by the whole step's `terms`; returns that loss, 0-dim."""
        with self.precision.autocast():
            loss = self.task(batch) / terms
        self.scaler.scale(loss).backward()
        return loss.detach()

    def update(self, rates: Mapping[str, float]) -> float:
        """Join the processes' gradients, clip them together, step, clear; returns their norm before clipping.

        Raises PatinaError, with no weight changed, when the norm is not finite in bf16 or fp32, or when the fp16
        scale has collapsed. In fp16 a step that overflowed is left out and the scale halved: that is normal.
        """
        for group, rate in zip(self.optimizer.param_groups, rates.values(), strict=True):
            group["lr"] = rate
        self._join()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(list(self.flats.values()), self.max_grad_norm).item()
        self._refuse(norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        for flat in self.flats.values():
            _gradient(flat).zero_()
        return norm

    def _join(self) -> None:
        if self.team.num_processes > 1:
            for flat in self.flats.values():
                torch.distributed.all_reduce(_gradient(flat))

    def _refuse(self, norm: float) -> None:
        if self.scaler.is_enabled():
            if self.scaler.get_scale() < SMALLEST_SCALE:
                raise PatinaError(
                    "fp16 overflows at every step; write mixed_precision: bf16 (or fp32), or train slower"
                )
        elif not math.isfinite(norm):
            raise PatinaError(f"the gradient's norm is {norm}: nothing was updated; lower learning_rate")


def _gradient(flat: nn.Parameter) -> Tensor:
    assert flat.grad is not None, "flat gradients live as long as the weights"
    return flat.grad
