"""Pictures that look alike: hashes that differ in few of their 64 bits, compared in blocks by numpy."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from patina.check.records import Record

NEAR = 5
"""Bits in which the hashes of two pictures that look alike differ at most: saved again or scaled, they differ in 0 to
3; unrelated pictures in 32 as a rule."""
FEWEST = 12
"""Places with an edge below which a hash says nothing: a dot on white paper looks like any other."""
BLOCK = 64
"""Pictures compared with all earlier ones at a time: 50 MB for 100,000 of them."""


def alike(records: Sequence[Record]) -> list[tuple[int, int, bool]]:
    """(picture, the first earlier one that it looks like, whether that one's mirror image), as indices."""
    telling = [at for at, one in enumerate(records) if (one.looks | one.mirrored).bit_count() >= FEWEST]
    looks = np.array([records[at].looks for at in telling], dtype=np.uint64)
    mirrored = np.array([records[at].mirrored for at in telling], dtype=np.uint64)
    found = []
    for start in range(0, len(telling), BLOCK):
        stop = start + BLOCK
        upright, turned = (_first(looks[start:stop], other[:stop], start) for other in (looks, mirrored))
        for offset, (same, mirror) in enumerate(zip(upright, turned, strict=True)):
            if same >= 0 or mirror >= 0:
                earlier = same if same >= 0 else mirror
                found.append((telling[start + offset], telling[earlier], same < 0))
    return found


def _first(block: NDArray[np.uint64], others: NDArray[np.uint64], start: int) -> list[int]:
    """For each of the block, which begins at `start`, the first index before its own that is near; -1 for none."""
    near = np.bitwise_count(block[:, None] ^ others[None, :]) <= NEAR
    near &= np.arange(len(others))[None, :] < start + np.arange(len(block))[:, None]
    return np.where(near.any(axis=1), near.argmax(axis=1), -1).tolist()
