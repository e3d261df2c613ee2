"""What the loop reports after each optimizer step."""

from collections.abc import Mapping
from dataclasses import dataclass


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
