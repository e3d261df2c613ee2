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


def checkpoints(model: PreTrainedModel) -> list[GradientCheckpointingLayer]:
    """The layers that can; none in a model that transformers has not prepared for it."""
    return [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]


@contextmanager
def keeping(model: PreTrainedModel) -> Iterator[None]:
    """Let no layer be recomputed: one that is takes no cache, and would see the newest token alone of an answer."""
    recomputed = [layer for layer in checkpoints(model) if layer.gradient_checkpointing]
    modes = [layer.training for layer in recomputed]
    try:
        for layer in recomputed:
            layer.gradient_checkpointing = layer.training = False
        yield
    finally:
        for layer, mode in zip(recomputed, modes, strict=True):
            layer.gradient_checkpointing, layer.training = True, mode
