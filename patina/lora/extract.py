"""The LoRA between two checkpoints: what fine-tuning changed, layer by layer, to a rank."""

import math

import torch

from patina.errors import PatinaError
from patina.lora.basefile import Base, Slot
from patina.lora.blocks import LOOSE, TEXT_ATTENTION
from patina.lora.combine import Combined, plain
from patina.lora.delta import Change, Thin
from patina.lora.names import Place
from patina.lora.svd import Keep, truncated


def extract(base: Base, tuned: Base, keep: Keep) -> Combined:
    """tuned - base as a plain LoRA of the blocks' layers, two tensors in memory at a time.

    Layers that are equal in both are left out, but an attention layer of a text encoder is held whole or not at all.
    The error is of the layers that a LoRA can hold; norms, biases and embeddings are none. Raises PatinaError where
    the two are of different families or sizes, or do not differ.
    """
    if len({base.family, tuned.family}) > 1:
        raise PatinaError(f"{base.path} is {base.family}, {tuned.path} is {tuned.family}; give two of one family")
    cut, lost, whole = {}, 0.0, 0.0
    for place in _differing(base, tuned):
        difference = tuned.slots[place].weight().double().sub_(base.slots[place].weight())
        if not difference.isfinite().all():
            raise PatinaError(f"{place.component} {place.path} holds NaN or infinity in one of the checkpoints")
        factors, kept, square = truncated(difference.flatten(1), keep)
        cut[place] = Thin(factors.up.float(), factors.down.float())
        lost, whole = lost + square - kept, whole + square
    if not cut:
        raise PatinaError(f"{base.path} and {tuned.path} differ in no layer that a LoRA can change")
    alpha = float(max(len(factors.down) for factors in cut.values()))
    changes: dict[Place, Change] = {
        place: plain(factors, alpha, tuned.slots[place].shape()[2:]) for place, factors in cut.items()
    }
    return Combined(changes, math.sqrt(max(lost, 0.0) / whole) if whole else 0.0)


def _differing(base: Base, tuned: Base) -> list[Place]:
    shared = [place for place in base.slots if place in tuned.slots and place.path not in LOOSE]
    unlike = [place for place in shared if base.slots[place].shape() != tuned.slots[place].shape()]
    if unlike:
        raise PatinaError(
            f"{unlike[0].component} {unlike[0].path} has another size in {tuned.path} than in {base.path}"
        )
    changed = {place for place in shared if not _equal(base.slots[place], tuned.slots[place])}
    whole = {
        Place(component, f"{path.split('.self_attn.')[0]}.{name}")
        for component, path in changed
        if ".self_attn." in path and component != "unet"
        for name in TEXT_ATTENTION
    }
    return [place for place in shared if place in changed or place in whole]


def _equal(one: Slot, other: Slot) -> bool:
    return torch.equal(one.weight().float(), other.weight().float())
