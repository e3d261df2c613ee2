"""A loss without its noise: the mean that the terminal, the metrics file and TensorBoard show."""

import math

FACTOR = 0.98
"""Share of the old value in each new smoothed loss: about the last fifty steps count."""


class Smoothed:
    """An exponential mean without the pull towards its start (Kingma and Ba 2015, section 3)."""

    def __init__(self, factor: float = FACTOR) -> None:
        self.factor = factor
        self._sum = self._weight = 0.0

    @property
    def value(self) -> float:
        """The mean so far; NaN before the first finite number."""
        return self._sum / self._weight if self._weight else math.nan

    def add(self, number: float) -> float:
        """Take in a number and return the mean; what is not finite is passed over, one NaN would stay forever."""
        if math.isfinite(number):
            self._sum = self.factor * self._sum + (1 - self.factor) * number
            self._weight = self.factor * self._weight + (1 - self.factor)
        return self.value
