"""The loss scale that keeps fp16 gradients from vanishing, kept on the device so that nobody waits for it."""

from collections.abc import Mapping

import torch
from torch import Tensor

START, GROWTH, BACKOFF, INTERVAL = 2.0**16, 2.0, 0.5, 2000
SMALLEST = 2.0**-10
"""A scale below this has met nothing but overflows for thousands of steps."""


class LossScale:
    """Doubled after 2000 steps without an overflow, halved at each one (Micikevicius et al. 2017, arXiv:1710.03740).

    The rule, the start and the saved form of `torch.amp.GradScaler`, which asks the device at every step whether it
    overflowed. Where it is not `enabled` the scale is 1 and stays so.
    """

    def __init__(self, device: torch.device, enabled: bool) -> None:
        self.enabled = enabled
        self.value = torch.tensor(START if enabled else 1.0, device=device)
        """0-dim fp32; the loss is multiplied by it."""
        self._calm = torch.zeros((), dtype=torch.int32, device=device)

    def adjust(self, finite: Tensor) -> None:
        """After a step whose gradient was finite or not, 0-dim bool."""
        if not self.enabled:
            return
        calm = (self._calm + 1) * finite
        grown = calm == INTERVAL
        self.value.mul_(BACKOFF + (1 - BACKOFF) * finite + (GROWTH - 1) * grown)
        self._calm.copy_(calm * ~grown)

    def state_dict(self) -> dict[str, float]:
        """Plain numbers; waits for the device."""
        if not self.enabled:
            return {}
        rule = {"growth_factor": GROWTH, "backoff_factor": BACKOFF, "growth_interval": INTERVAL}
        return {"scale": self.value.item(), **rule, "_growth_tracker": int(self._calm.item())}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Put back what `state_dict` gave."""
        if self.enabled:
            self.value.fill_(state["scale"])
            self._calm.fill_(state["_growth_tracker"])
