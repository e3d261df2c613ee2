"""Activations computed twice instead of kept, in a model that stays in eval mode."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from patina.errors import PatinaError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def recompute_layers(model: PreTrainedModel) -> None:
    """Let each layer of a frozen, adapted model keep its input alone. Raises PatinaError where a model cannot.

    transformers' own switch asks whether the layer trains: so it does, while what is inside it stays in eval mode.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        raise PatinaError(
            f"gradient_checkpointing: {type(model).__name__} cannot do it; write gradient_checkpointing: false"
        )
    again = partial(checkpoint, use_reentrant=False)
    for layer in layers:
        layer.gradient_checkpointing = layer.training = True
        layer._gradient_checkpointing_func = again  # pyright: ignore[reportArgumentType]
