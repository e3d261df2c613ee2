"""Activations computed twice instead of kept, in a model that stays in eval mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from transformers.modeling_layers import GradientCheckpointingLayer

from patina.errors import PatinaError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def recompute_layers(model: PreTrainedModel, again: Callable[..., Any]) -> None:
    """Let each layer of a frozen, adapted model keep its input alone, and be computed by `again` (`engine.memory`).

    Raises PatinaError where a model cannot. transformers' own switch asks whether the layer trains: so it does, while
    what is inside it stays in eval mode.
    """
    if not checkpoints(model):
        raise PatinaError(
            f"gradient_checkpointing: {type(model).__name__} cannot do it; write gradient_checkpointing: false"
        )
    for layer in checkpoints(model):
        layer.gradient_checkpointing = layer.training = True
        layer._gradient_checkpointing_func = again  # pyright: ignore[reportArgumentType]


@contextmanager
def kept_whole(model: PreTrainedModel) -> Iterator[None]:
    """Nothing is computed twice within: a layer that is keeps nothing of earlier tokens, and answers come out wrong.

    Nor does one train, which was only so that it is: some drop parts of what they compute then.
    """
    again = [layer for layer in checkpoints(model) if layer.gradient_checkpointing]
    for layer in again:
        layer.gradient_checkpointing = layer.training = False
    try:
        yield
    finally:
        for layer in again:
            layer.gradient_checkpointing = layer.training = True


def checkpoints(model: PreTrainedModel) -> list[GradientCheckpointingLayer]:
    """The layers that can; none in a model that transformers has not prepared for it."""
    return [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
