"""Activations computed twice instead of kept, in a model that stays in eval mode."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers.modeling_layers import GradientCheckpointingLayer

from patina.errors import PatinaError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def recompute_layers(model: PreTrainedModel) -> None:
    """Let each layer of a frozen, adapted model keep its input alone. Raises PatinaError where a model cannot."""
    if not model.supports_gradient_checkpointing:
        raise PatinaError(
            f"gradient_checkpointing: {type(model).__name__} cannot do it; write gradient_checkpointing: false"
        )
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            # transformers asks the layer itself whether it trains; what is inside it stays in eval mode
            layer.training = True
