"""An exponential moving average of the flat weights: what is shown, measured and exported in place of the last ones."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The mean of a run's weights over its last steps (Polyak & Juditsky 1992), one tensor [n] fp32 a flat weight.

    A step moves it by 1 - min(decay, (1 + n) / (10 + n)) of the way to the weights, n steps after the start, so that
    the first ones are forgotten soon (as TensorFlow's and diffusers' averages do). One that is left out does not move
    it, but counts in n. Nobody waits for the device.
    """

    def __init__(self, flats: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay, self.steps = decay, 0
        self._pairs = [(flat, flat.detach().clone()) for flat in flats.values()]

    @torch.no_grad()
    def note(self, taken: Tensor) -> None:
        """A step was `taken`, or not (0-dim bool, on the weights' device)."""
        self.steps += 1
        kept = min(self.decay, (1 + self.steps) / (10 + self.steps))
        part = taken.float() * (1 - kept)
        for flat, mean in self._pairs:
            mean.lerp_(flat, part)

    @torch.no_grad()
    def begin(self, steps: int) -> None:
        """Take the live weights for the average after so many steps."""
        self.steps = steps
        for flat, mean in self._pairs:
            mean.copy_(flat)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the live weights are the average; afterwards they are bit for bit what they were."""
        live = [flat.detach().clone() for flat, _ in self._pairs]
        with torch.no_grad():
            for flat, mean in self._pairs:
                flat.copy_(mean)
        try:
            yield
        finally:
            with torch.no_grad():
                for (flat, _), was in zip(self._pairs, live, strict=True):
                    flat.copy_(was)
