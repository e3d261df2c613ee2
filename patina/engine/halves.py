"""Half-precision copies of the adapter weights, so that no layer casts its own in every pass."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from patina.engine.update import gradient


class Halves:
    """One half-precision copy of each flat weight, whose views stand in the layers while a pass is computed.

    Outside of a pass the layers hold their fp32 masters, as everybody else expects of them.
    """

    def __init__(self, modules: Mapping[str, nn.Module], flats: Mapping[str, nn.Parameter], dtype: torch.dtype) -> None:
        self._groups = [(flat, flat.detach().to(dtype), torch.zeros_like(flat, dtype=dtype)) for flat in flats.values()]
        self._places = [place for module in modules.values() for place in _places(module)]
        self._copies = [self._copy(master) for _, _, master in self._places]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, passes compute with fresh copies; at the end the copies' gradients are added to the flat ones."""
        for flat, copy, grad in self._groups:
            copy.copy_(flat.detach())
            grad.zero_()
        for (owner, name, _), copy in zip(self._places, self._copies, strict=True):
            setattr(owner, name, copy)
        try:
            yield
        finally:
            for owner, name, master in self._places:
                setattr(owner, name, master)
        for flat, _, grad in self._groups:
            gradient(flat).add_(grad)

    def _copy(self, master: nn.Parameter) -> nn.Parameter:
        """A view [*master.shape] of the copy of the flat weight that `master` is a view of."""
        storage, start = master.untyped_storage().data_ptr(), int(master.storage_offset())
        (found,) = [group for group in self._groups if group[0].untyped_storage().data_ptr() == storage]
        copy, grad = (_view(part, start, master) for part in found[1:])
        parameter = nn.Parameter(copy)
        parameter.grad = grad
        return parameter


def _places(module: nn.Module) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """Where the trained weights are held: (layer, attribute, weight)."""
    return [
        (owner, name, weight)
        for owner in module.modules()
        for name, weight in owner.named_parameters(recurse=False)
        if weight.requires_grad
    ]


def _view(flat: Tensor, start: int, like: Tensor) -> Tensor:
    return flat[start : start + like.numel()].view(like.shape)
