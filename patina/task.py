"""What the loop knows of the thing it trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

Batch = Mapping[str, Any]


class Task(Protocol):
    """One kind of training; implementations are `nn.Module`s."""

    def count(self, batch: Batch) -> int:
        """How many terms the batch's loss sums: images, or unmasked tokens."""
        ...

    def prepare(self, batch: Batch) -> Batch:
        """All of the work on a batch that is the host's: its tensors, on the CPU, are what the device needs of it."""
        ...

    def split(self, prepared: Batch, most: int) -> list[Batch]:
        """What `prepare` gave in parts of at most `most` rows, whose losses add up to the whole's."""
        ...

    def __call__(self, prepared: Batch) -> Tensor:
        """The loss SUMMED over those terms, 0-dim fp32. Only the step divides, over a whole step's terms at once.

        `prepared` is what `prepare` gave, its tensors moved to the device; all that is done here is done there, and
        depends on the tensors' values alone: nothing waits for a result, so that it can be recorded and played again.
        """
        ...

    def adapted(self) -> Mapping[str, nn.Module]:
        """What carries LoRA, by component: `unet`, `text_encoder`, ... The first is the main one."""
        ...
