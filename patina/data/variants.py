"""Variants of a picture that are encoded beside it: mirrored, so that a showing may turn left what was right."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from patina.data.buckets import Fit, Size, fit, size_ids


class Variant(NamedTuple):
    """One way of cutting a picture; a cache entry is a function of it and of the picture."""

    mirrored: bool = False


PLAIN = Variant()


class Variety(NamedTuple):
    """Which variants a run asks for."""

    flip: bool = False


ALIKE = Variety()


def variants(variety: Variety) -> tuple[Variant, ...]:
    """The variants of which a showing is one."""
    return (PLAIN, Variant(mirrored=True)) if variety.flip else (PLAIN,)


def choose(count: int, seed: int, epoch: int, place: int) -> int:
    """Which of `count` variants a showing is: a function of the arguments alone, each as likely as another."""
    return 0 if count == 1 else Random(f"variant {seed} {epoch} {place}").randrange(count)


def cut(image: Image.Image, how: Fit, variant: Variant) -> np.ndarray:
    """An upright picture in RGB -> the variant's pixels, 8-bit [H,W,3], of the bucket's size."""
    part = image.resize(how.bucket, Image.Resampling.LANCZOS, how.box)
    return np.array(ImageOps.mirror(part) if variant.mirrored else part)


def turned(mask: Tensor | None, variant: Variant) -> Tensor | None:
    """A mask [1,h,w] of the plain picture, as that of the variant."""
    return mask.flip(-1) if mask is not None and variant.mirrored else mask


def ids(size: Size, sizes: Sequence[Size], variant: Variant) -> tuple[int, ...]:
    """`size_ids` of the variant: of a mirrored picture they are those of its mirror image."""
    return size_ids(size, fit(size, sizes))
