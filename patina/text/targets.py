"""Which layers of a language model a LoRA goes on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from patina.errors import PatinaError
from patina.lora.inject import layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = re.compile(r"(^|\.)\w*(attn|attention)\w*\.")
"""Part of the path of a layer that belongs to attention, in every architecture of transformers."""


def choose_targets(model: PreTrainedModel, wanted: str | Sequence[str]) -> Sequence[str]:
    """Names for `inject.adapt`: `full` and `attn-mlp` are all linear layers but the output layer, `attn` those of
    attention; others are taken as they are. Raises PatinaError where there are none."""
    if not isinstance(wanted, str):
        return wanted
    head = model.get_output_embeddings()
    paths = [path for path, layer in layers(model).items() if layer is not head]
    chosen = [path for path in paths if ATTENTION.search(path)] if wanted == "attn" else paths
    if not chosen:
        raise PatinaError(f"lora_target: {wanted} finds no layer in this {type(model).__name__}; write their names")
    return chosen
