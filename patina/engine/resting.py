"""Frozen weights that rest in the host's memory and come to the device a block at a time, where a step fits in no other
way.

With gradient checkpointing a block is computed again on the way back, where its weights come a second time: a step
needs no more of them at once than one block has. The numbers are the same, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

RESTING = "the frozen weights rest in the computer's memory and come a block at a time: slower, the numbers the same"
"""What a rung says that does this."""
AGAIN = "_gradient_checkpointing_func"
"""What transformers' layers, and diffusers' parents of blocks, are computed again by."""


class Weight(NamedTuple):
    """A frozen weight and its place in its module."""

    owner: nn.Module
    name: str
    value: nn.Parameter


def can_rest(blocks: Sequence[nn.Module]) -> bool:
    """Whether it would free most of what the blocks' frozen weights take: those in few bits stay where they are."""
    frozen = sum(weight.nbytes for block in blocks for weight in block.parameters() if not weight.requires_grad)
    return 2 * sum(one.value.nbytes for block in blocks for one in _weights(block)) > frozen


def rest(blocks: Sequence[nn.Module]) -> None:
    """Let each block's frozen weights be on its device while it computes alone; no block is within another."""
    for block in blocks:
        if weights := list(_weights(block)):
            device = weights[0].value.device
            _settle(block, _Guests([one._replace(value=_hosted(one.value)) for one in weights], device))


class _Guests:
    """A block's weights, each the one in the host's memory."""

    def __init__(self, weights: Sequence[Weight], device: torch.device) -> None:
        self.weights, self.device, self.here = weights, device, True
        self.go()

    def come(self, *_: object) -> None:
        """Each time as parameters of their own, with no swap of data: autograd keeps those for the way back."""
        if not self.here:
            for owner, name, host in self.weights:
                there = host.detach().to(self.device, non_blocking=True, copy=True)
                owner._parameters[name] = nn.Parameter(there, requires_grad=False)
        self.here = True

    def go(self, *_: object) -> None:
        if self.here:
            for owner, name, host in self.weights:
                owner._parameters[name] = host
        self.here = False


def _settle(block: nn.Module, guests: _Guests) -> None:
    block.register_forward_pre_hook(guests.come)
    # always: checkpointing leaves a block that it computes again, once it has what it needs, by an exception
    block.register_forward_hook(guests.go, always_call=True)
    if AGAIN in vars(block):  # transformers computes a layer again without its hooks
        setattr(block, AGAIN, _hosting(vars(block)[AGAIN], guests))


def _hosting(again: Callable[..., Any], guests: _Guests) -> Callable[..., Any]:
    def computed(compute: Callable[..., Any], *inputs: Any) -> Any:
        def hosting(*inputs: Any) -> Any:
            guests.come()
            try:
                return compute(*inputs)
            finally:
                guests.go()

        return again(hosting, *inputs)

    return computed


def _weights(block: nn.Module) -> Iterator[Weight]:
    for owner in block.modules():
        for name, value in owner._parameters.items():
            if type(value) is nn.Parameter and not value.requires_grad:  # bitsandbytes has types of its own
                yield Weight(owner, name, value)


def _hosted(weight: nn.Parameter) -> nn.Parameter:
    """The weight in memory that a GPU reads without the processor's help."""
    host: Tensor = weight.detach().to("cpu", copy=True)
    return nn.Parameter(host.pin_memory() if torch.cuda.is_available() else host, requires_grad=False)
