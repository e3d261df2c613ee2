"""The state of a run that was measured to be the best so far, and for how long none was better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

LOSS = "validation/loss"
"""The curve that decides."""


@dataclass
class Best:
    """What is kept from one measurement to the next."""

    step: int = 0
    """0: nothing was measured."""
    loss: float = math.inf
    since: int = 0
    """Measurements since, none of which was better."""
    state: Mapping[str, Tensor] = field(default_factory=dict)
    """As `patina.lora.inject.state` gives it; on the CPU."""

    def note(self, step: int, loss: float, live: Mapping[str, Tensor]) -> None:
        """Take note of a measurement; `live` are the weights that were measured. NaN is never better."""
        if loss < self.loss:
            self.step, self.loss, self.since = step, loss, 0
            self.state = {key: tensor.detach().to("cpu", copy=True) for key, tensor in live.items()}
        else:
            self.since += 1

    def over(self, patience: int | None) -> bool:
        """Whether nothing better came in as many measurements as one would wait for."""
        return patience is not None and self.since >= patience

    def numbers(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the state; `restore` undoes it."""
        return {"step": self.step, "loss": self.loss, "since": self.since}

    def restore(self, numbers: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
        """Put back what a checkpoint kept; one that kept nothing, such as an earlier version's, leaves all at zero."""
        if numbers:
            self.step, self.loss, self.since = (numbers[name] for name in ("step", "loss", "since"))
            self.state = state
