"""Pictures that look alike: hashes that differ in few of their 64 bits, and pixels that hardly differ."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from patina.check.records import SMALL, Record

NEAR = 5
"""Bits in which the hashes of two pictures that look alike differ at most; unrelated ones differ in 32 as a rule."""
SAME = 6
"""Grey levels of 255 by which their pixels differ at most on average, at 16 x 16: hashes alone take every picture
with a light sky for the same."""
FEWEST = 12
"""Places with an edge below which a hash says nothing: a dot on white paper looks like any other."""
BLOCK = 64
"""Pictures compared with all earlier ones at a time: 50 MB for 100,000 of them."""


def alike(records: Sequence[Record]) -> list[tuple[int, int, bool]]:
    """(picture, the first earlier one that it looks like, whether that one's mirror image), as indices."""
    telling = [at for at, one in enumerate(records) if (one.looks | one.mirrored).bit_count() >= FEWEST]
    looks = np.array([records[at].looks for at in telling], dtype=np.uint64)
    mirrored = np.array([records[at].mirrored for at in telling], dtype=np.uint64)
    pixels = b"".join(records[at].greys for at in telling)
    greys = np.frombuffer(pixels, dtype=np.uint8).reshape(-1, SMALL, SMALL)
    found = []
    for start in range(0, len(telling), BLOCK):
        upright, turned = (_near(looks, other, start) for other in (looks, mirrored))
        for offset, (same, mirror) in enumerate(zip(upright, turned, strict=True)):
            at = start + offset
            for others, flipped in ((same, False), (mirror, True)):
                earlier = _first(greys, at, others, flipped)
                if earlier is not None:
                    found.append((telling[at], telling[earlier], flipped))
                    break
    return found


def _near(looks: NDArray[np.uint64], others: NDArray[np.uint64], start: int) -> list[NDArray[np.intp]]:
    """For each picture of the block that begins at `start`, the earlier ones whose hash is near."""
    block, earlier = looks[start : start + BLOCK], others[: start + BLOCK]
    near = np.bitwise_count(block[:, None] ^ earlier[None, :]) <= NEAR
    return [np.flatnonzero(row[: start + offset]) for offset, row in enumerate(near)]


def _first(greys: NDArray[np.uint8], at: int, others: NDArray[np.intp], flipped: bool) -> int | None:
    """The first of `others` whose pixels are those of picture `at` too, or of its mirror image."""
    own = (greys[at, :, ::-1] if flipped else greys[at]).astype(np.int16)
    for start in range(0, len(others), 1024):
        some = others[start : start + 1024]
        same = np.abs(greys[some] - own).mean(axis=(1, 2)) <= SAME
        if same.any():
            return int(some[same.argmax()])
    return None
