"""Variants of a picture that are encoded beside it: mirrored, cut elsewhere, or in slightly other colours."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from patina.data.buckets import Buckets, Fit, Size, fit, growth, size_ids
from patina.data.images import ImageError, picture_size

if TYPE_CHECKING:
    from torch import Tensor

    from patina.data.captions import Captioned

ROOM = 8
"""Pixels of the bucket's scale, one place of the latents: where less is cut off, another cut is the same picture."""


class Variant(NamedTuple):
    """One way of cutting a picture; a cache entry is a function of it and of the picture."""

    mirrored: bool = False
    """After all else is done."""
    place: float = 0.5
    """Where the cut is in the room that the bucket leaves, from 0 (left or top) to 1 (right or bottom)."""
    colour: float = 0.0
    """How far the colours may move, 0 to 1; see `recoloured`."""
    draw: int = 0
    """Which draw of the colours it is."""


PLAIN = Variant()


class Variety(NamedTuple):
    """Which variants a run asks for."""

    flip: bool = False
    crop: bool = False
    colour: float = 0.0
    number: int = 1
    """Of cuts, of colours, or of both: the second cut is in the second colours. Mirrored, they are as many again."""

    @property
    def varies(self) -> bool:
        """Whether a picture may have another variant than the one as it is."""
        return self.flip or self.crop or self.colour > 0


ALIKE = Variety()


def variants(variety: Variety, how: Fit) -> tuple[Variant, ...]:
    """The variants of a picture with this cut of which a showing is one; the first is the picture as it is."""
    crop = variety.crop and _has_room(how)
    number = variety.number if crop or variety.colour else 1
    upright = tuple(
        Variant(
            place=_place(index) if crop else PLAIN.place,
            colour=variety.colour if index else PLAIN.colour,
            draw=index if variety.colour else PLAIN.draw,
        )
        for index in range(number)
    )
    return (*upright, *(kind._replace(mirrored=True) for kind in upright if variety.flip))


def _has_room(how: Fit) -> bool:
    return 2 * max(how.box[:2]) * growth(how) >= ROOM


def _place(index: int) -> float:
    """The middle, both ends, then the quarters, the eighths and so on: of any number the first are spread evenly."""
    if index < 3:
        return (0.5, 0.0, 1.0)[index]
    parts = 2 ** (index - 1).bit_length()
    return (2 * (index - 1 - parts // 2) + 1) / parts


def varied(captioned: Sequence[Captioned], buckets: Buckets) -> list[str]:
    """What to say of a set's variants before they are encoded, by the heads of the files; nothing where it has none.

    What cannot be read is left to the encoding, which names it.
    """
    found = []
    for pair in captioned if any(pair.variety.varies for pair in captioned) else ():
        with suppress(ImageError):
            found.append(variants(pair.variety, fit(picture_size(pair.path), buckets)))
    if not found:
        return []
    roomy = sum(len({kind.place for kind in own}) > 1 for own in found)
    cuts = (
        [f"{roomy} of {len(found)} pictures have room for other cuts"]
        if any(pair.variety.crop for pair in captioned)
        else []
    )
    numbers = [len(own) for own in found]
    each = " to ".join(dict.fromkeys((str(min(numbers)), str(max(numbers)))))
    return [*cuts, f"{sum(numbers)} encodings of {len(found)} pictures: {each} variant{'s' * (each != '1')} each"]


def choose(count: int, seed: int, epoch: int, place: int) -> int:
    """Which of `count` variants a showing is: a function of the arguments alone, each as likely as another."""
    return 0 if count == 1 else Random(f"variant {seed} {epoch} {place}").randrange(count)


def cut(image: Image.Image, how: Fit, variant: Variant) -> np.ndarray:
    """An upright picture in RGB -> the variant's pixels, 8-bit [H,W,3], of the bucket's size."""
    box = moved(how, variant.place, variant.place).box
    part = recoloured(image.resize(how.bucket, Image.Resampling.LANCZOS, box), variant.colour, variant.draw)
    return np.array(ImageOps.mirror(part) if variant.mirrored else part)


def moved(how: Fit, across: float, down: float) -> Fit:
    """The middle cut `how` moved to other places of its room, each from 0 to 1; one of the two has no room."""
    left, top, right, bottom = how.box
    x, y = left * (2 * across - 1), top * (2 * down - 1)
    # Pillow refuses a box that ends beyond the picture, be it by a rounding
    ends = min(right + x, float(round(left + right))), min(bottom + y, float(round(top + bottom)))
    return replace(how, box=(left + x, top + y, *ends))


def recoloured(part: Image.Image, colour: float, draw: int) -> Image.Image:
    """The picture with brightness, contrast and saturation each times 1 - `colour` to 1 + `colour`, and its hues turned
    by up to `colour` of half the circle either way: a function of the arguments alone."""
    if not colour:
        return part
    rng = Random(f"colour {draw} {hashlib.sha256(part.tobytes()).hexdigest()}")
    for adjust in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        part = adjust(part).enhance(1 + rng.uniform(-colour, colour))
    turn = round(rng.uniform(-colour, colour) * 128)
    hue, saturation, value = part.convert("HSV").split()
    turned_hue = hue.point([(level + turn) % 256 for level in range(256)])
    return Image.merge("HSV", (turned_hue, saturation, value)).convert("RGB")


def turned(mask: Tensor, variant: Variant) -> Tensor:
    """A mask [1,h,w] of the variant's cut, mirrored as it is."""
    return mask.flip(-1) if variant.mirrored else mask


def ids(size: Size, buckets: Buckets, variant: Variant) -> tuple[int, ...]:
    """`size_ids` of the variant: of a mirrored picture they are those of its mirror image."""
    across = 1 - variant.place if variant.mirrored else variant.place
    return size_ids(size, moved(fit(size, buckets), across, variant.place))
