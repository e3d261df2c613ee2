"""Ways of computing in less memory, and how to tell that there was too little."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from patina.errors import PatinaError


def again(drops: bool) -> Callable[..., Any]:
    """What computes a block without keeping its activations, and again in the backward pass (Chen et al. 2016,
    arXiv:1604.06174); with the same random numbers where something `drops`, which is asked of the host each time.
    """

    def computed(block: nn.Module, *inputs: Any) -> Any:
        return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=drops)

    return computed


@contextmanager
def enough_for(what: str, remedy: str) -> Iterator[None]:
    """Where no way down is left: raises PatinaError when the device's memory runs out at `what`."""
    try:
        yield
    except RuntimeError as error:
        if not ran_out(error):
            raise
        said = "the device's memory ran out; end other programs that use it, or"
        raise PatinaError(f"{what}: {said} {remedy}") from error


def ran_out(error: RuntimeError) -> bool:
    """Whether this is for want of memory on the device: torch's own error, CUDA's, or what a recording broke off by."""
    context = error.__context__
    return "out of memory" in str(error) or (isinstance(context, RuntimeError) and ran_out(context))
