"""One training step played from recordings: a CUDA graph of the micro-batch for each shape that batches have.

A GPU waits for Python otherwise: a step of Stable Diffusion 1.5 is 5,000 kernels, launched one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from patina.engine.memory import ran_out
from patina.engine.step import EagerStep, moved
from patina.engine.update import Outcome
from patina.task import Batch

WARM_UP = 2
"""Micro-batches computed before the first is recorded: libraries load their kernels and take their memory then."""


@dataclass
class Shape:
    """Batches of one shape: the tensors on the device that they are copied into, and what is recorded over those."""

    inputs: dict[str, Tensor]
    graph: torch.cuda.CUDAGraph | None = None


class CapturedStep:
    """As `EagerStep`, which it holds and whose every tensor it works on: the two can take turns.

    The task's dropouts must be off: a recording of them would be right, but they are seeded from the host.
    """

    passes = WARM_UP + 1
    """Micro-batches after which no more memory is taken."""

    def __init__(self, eager: EagerStep, often: Callable[[Batch], bool], say: Callable[[str], None]) -> None:
        """`often`: whether batches of this one's shape will come often enough; `say` tells the user what fails."""
        self.eager, self._often, self._say = eager, often, say
        self.optimizer, self.scaler, self.precision = eager.optimizer, eager.scaler, eager.precision
        self._shapes: dict[tuple, Shape] = {}
        self._stream = torch.cuda.Stream()
        self._pool = torch.cuda.graph_pool_handle()
        self._warm, self._records = 0, True

    def add(self, batch: Batch, terms: int) -> None:
        """Add the gradient of the batch's loss, divided by the whole step's `terms`."""
        self.eager.divide_by(terms)
        for part in self.eager.parts(batch):
            if self._records and self._often(batch):
                self._play(self._placed(part))
            else:
                self.eager.compute(moved(part, self.precision.device))

    def update(self, rates: Mapping[str, float]) -> Outcome:
        """As `EagerStep.update`."""
        return self.eager.update(rates)

    def stay_eager(self) -> None:
        """Record nothing from here on, and play nothing: what is computed with no longer stays in its place."""
        self._records = False

    def release(self) -> None:
        """Forget all recordings, and give back the memory that is kept for steps to come."""
        torch.cuda.synchronize()
        self._shapes.clear()
        self._pool = torch.cuda.graph_pool_handle()
        self.eager.release()

    def _placed(self, prepared: Batch) -> Shape:
        """The record of the batch's shape, with its tensors copied in."""
        host = {name: part for name, part in prepared.items() if isinstance(part, Tensor)}
        key = tuple((name, part.dtype, part.shape) for name, part in sorted(host.items()))
        shape = self._shapes.get(key)
        if shape is None:
            device = self.precision.device
            inputs = {name: torch.empty(part.shape, dtype=part.dtype, device=device) for name, part in host.items()}
            shape = self._shapes[key] = Shape(inputs)
        for name, part in host.items():
            shape.inputs[name].copy_(part.pin_memory(), non_blocking=True)
        return shape

    def _play(self, shape: Shape) -> None:
        if shape.graph is None and self._warm < WARM_UP:
            self._warm += 1
            self._aside(shape)
            return
        if shape.graph is None:
            shape.graph = self._recorded(shape)
        if shape.graph is None:
            self.eager.compute(shape.inputs)
        else:
            shape.graph.replay()

    def _aside(self, shape: Shape) -> None:
        """Compute on the stream that will be recorded, as torch asks for."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self.eager.compute(shape.inputs)
        torch.cuda.current_stream().wait_stream(self._stream)

    def _recorded(self, shape: Shape) -> torch.cuda.CUDAGraph | None:
        """A graph over the shape's tensors; None where this cannot be recorded, which the user is told.

        Raises torch's error where memory runs out. All graphs share one pool of memory: what they leave is in tensors
        that were there before.
        """
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                self.eager.compute(shape.inputs)
        except RuntimeError as error:
            torch.cuda.set_stream(stream)  # a recording that breaks off may leave its own in place
            if ran_out(error):
                raise
            self._records = False
            reason = " ".join(str(error).split())[:200]
            self._say(f"engine: this step cannot be captured ({reason}); it is computed uncaptured, which is slower")
            return None
        return graph
