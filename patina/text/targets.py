"""Which layers of a language model a LoRA goes on."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from patina.errors import PatinaError
from patina.family import ends_in
from patina.lora.inject import layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = re.compile(r"(^|\.)\w*(attn|attention)\w*\.")
"""Part of the path of a layer that belongs to attention, in every architecture of transformers."""


def choose_targets(model: PreTrainedModel, wanted: str | Sequence[str], whole: Sequence[str] = ()) -> Sequence[str]:
    """Names for `inject.adapt`: `full` and `attn-mlp` are all linear layers but the output layer, `attn` those of
    attention; others are taken as they are. What is at the paths `whole` is left out. Raises PatinaError where there
    are none."""
    inside = tuple(f"{path}." for path in whole)
    adaptable = {path: layer for path, layer in layers(model).items() if not f"{path}.".startswith(inside)}
    if not isinstance(wanted, str):
        return _named(adaptable, wanted, whole) if whole else wanted
    head = model.get_output_embeddings()
    paths = [path for path, layer in adaptable.items() if layer is not head]
    chosen = [path for path in paths if ATTENTION.search(path)] if wanted == "attn" else paths
    if not chosen:
        raise PatinaError(f"lora_target: {wanted} finds no layer in this {type(model).__name__}; write their names")
    return chosen


def _named(adaptable: Collection[str], wanted: Sequence[str], whole: Sequence[str]) -> list[str]:
    """The paths that end in one of `wanted`; a name of none of them stays, for `inject.adapt` to complain of."""
    found = []
    for name in wanted:
        paths = [path for path in adaptable if ends_in(path, (name,))]
        if not paths and any(ends_in(path, (name,)) for path in whole):
            raise PatinaError(f"lora_target: {name} is new and is trained whole, without a LoRA; leave it out")
        found += paths or [name]
    return found
