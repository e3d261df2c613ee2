"""Numbers on their way from the device to the host, which goes on meanwhile."""

import torch
from torch import Tensor


class Arriving:
    """A few numbers that the device may yet be computing."""

    def __init__(self, numbers: Tensor) -> None:
        self._numbers, self._arrived = numbers, None
        if numbers.is_cuda:
            self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def ready(self) -> bool:
        """Whether `read` need not wait."""
        return self._arrived is None or self._arrived.query()

    def read(self) -> list[float]:
        """The numbers, waited for."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._numbers.tolist()
