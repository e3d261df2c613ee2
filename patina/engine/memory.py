"""Ways of computing in less memory."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


def again(drops: bool) -> Callable[..., Any]:
    """What computes a block without keeping its activations, and again in the backward pass (Chen et al. 2016,
    arXiv:1604.06174); with the same random numbers where something `drops`, which is asked of the host each time.
    """

    def computed(block: nn.Module, *inputs: Any) -> Any:
        return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=drops)

    return computed
