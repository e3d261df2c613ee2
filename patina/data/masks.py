"""Masks: which parts of a picture count in the loss, read beside the picture or from its transparency."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from patina.data.ahead import ahead
from patina.data.cache import Encoded, View, content
from patina.data.entries import place, write
from patina.data.images import ImageError, mask_file, open_alpha, open_image
from patina.data.shards import Shards, pack
from patina.data.variants import PLAIN, moved, turned
from patina.errors import PatinaError
from patina.files import there

FORMAT = 1
"""Part of every key; one more whenever an entry of the same mask would come out differently."""
FILES, ALPHA = "files", "alpha"


class Masking(NamedTuple):
    """Where a run's masks are, and what they leave."""

    kind: str
    """`off`, `files` or `alpha`."""
    least: float
    """What the parts weigh that a mask leaves out, 0 to 1."""


UNMASKED = Masking("off", 1.0)


def masks_of(
    pictures: Sequence[tuple[View, Encoded]], masking: Masking, folder: Path, workers: int
) -> list[Tensor | None]:
    """What each place of the latents weighs, [1,h,w] fp32 from `least` to 1; 1 where a picture has no mask, and None
    where the run has none. Each is cut and mirrored as its view is. Masks are kept in the cache in `folder`.

    Raises PatinaError for a mask that cannot be read, is of another size than its picture, or is black in its middle
    cut. Elsewhere a black one is what it says: all of that cut weighs `least`.
    """

    if masking.kind == "off":
        return [None] * len(pictures)
    kept, made = Shards(folder), set[str]()

    def look(pair: tuple[View, Encoded]) -> tuple[Tensor, str | None]:
        (path, variant), entry = pair
        cut = replace(entry, fit=moved(entry.fit, variant.place, variant.place))
        return _mask(path, cut, masking.kind, kept, variant.place == PLAIN.place)

    with closing(ahead(look, pictures, workers, depth=2 * workers)) as stream:
        found = []
        for (view, _), future in stream:
            levels, new = future.result()
            if new is not None:  # here and not in the threads, of which two may have made the same one
                write(place(folder, new), {"mask": levels})
                made.add(new)
            found.append(turned((levels / 255).clamp(min=masking.least), view.variant))
    if made:
        pack(folder)
    return found


def _mask(path: Path, entry: Encoded, kind: str, kept: Shards, middle: bool) -> tuple[Tensor, str | None]:
    """The mask's levels, [1,h,w] uint8, 255 where it leaves the picture as it is; the key that they are yet to be
    kept under."""
    source = mask_file(path) if kind == FILES else path
    if not there(source):
        return _white(entry), None
    key = _key(source, entry, kind)
    if (known := kept.read(key)) is not None:
        return known["mask"], None
    return _reduced(source, entry, kind, middle), key


def _key(source: Path, entry: Encoded, kind: str) -> str:
    digest = hashlib.sha256(content(source)).hexdigest()
    rest = ["mask", FORMAT, kind, digest, entry.size, entry.fit.box, tuple(entry.mean.shape[1:])]
    return hashlib.sha256(json.dumps(rest).encode()).hexdigest()


def _reduced(source: Path, entry: Encoded, kind: str, middle: bool) -> Tensor:
    """Cut as the picture is; at each place of the latents the mean over its area."""
    mask = open_alpha(source) if kind == ALPHA else open_image(source).convert("L")
    if mask is None:
        return _white(entry)
    if mask.size != entry.size:
        sizes = [f"{width}x{height}" for width, height in (mask.size, entry.size)]
        raise ImageError(f"{source}: the mask is {sizes[0]} and its picture {sizes[1]}; save it in the picture's size")
    height, width = entry.mean.shape[1:]
    levels = np.array(mask.resize((width, height), Image.Resampling.BOX, entry.fit.box))
    if middle and not levels.any():
        what = "is transparent" if kind == ALPHA else "the mask is black"
        raise ImageError(f"{source}: {what} in all of the part that is trained on; leave the picture out, or mend it")
    return torch.from_numpy(levels)[None]


def _white(entry: Encoded) -> Tensor:
    return torch.full((1, *entry.mean.shape[1:]), 255, dtype=torch.uint8)


def note(weights: Sequence[Tensor], kind: str) -> str:
    """What to say of the pictures of a set that no mask takes anything of; empty: there are none such.

    Raises PatinaError where there are no others.
    """
    whole = sum(bool((one == 1).all()) for one in weights)
    if whole == len(weights):
        where = "no NAME-masklabel.png beside a picture" if kind == FILES else "no picture that is transparent"
        raise PatinaError(f"dataset.masks: is {kind}, but there is {where}; add some, or write dataset.masks: off")
    return f"masks: {whole} of {len(weights)} pictures have none, or a white one, and count whole" if whole else ""
