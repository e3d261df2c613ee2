"""What the loop knows of the thing it trains."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

Batch = Mapping[str, Any]


class Task(Protocol):
    """One kind of training; implementations are `nn.Module`s."""

    def count(self, batch: Batch) -> int:
        """How many terms the batch's loss sums: images, or unmasked tokens."""
        ...

    def __call__(self, batch: Batch) -> Tensor:
        """The loss SUMMED over those terms, 0-dim fp32. Only the loop divides, over a whole step's terms at once."""
        ...

    def adapted(self) -> Mapping[str, nn.Module]:
        """What carries LoRA, by component: `unet`, `text_encoder`, ... The first is the main one."""
        ...
