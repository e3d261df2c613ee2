"""A base as it was before anything was put on it, for as long as one looks."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from patina.lora.recipe import Carrier


@contextmanager
def switched_off(module: nn.Module) -> Iterator[None]:
    """Let the adapters in `module` do nothing; afterwards all is as it was, which of them are trained too."""
    carriers = [layer for layer in module.modules() if isinstance(layer, Carrier)]
    trained = [(weight, weight.requires_grad) for layer in carriers for weight in layer.parameters()]
    try:
        for layer in carriers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in carriers:
            layer.enable_adapters(True)
        for weight, was in trained:  # peft would train whatever is active, a start that stays as it is too
            weight.requires_grad_(was)
