"""A LoRA file and the weight it gets, as command lines write them: `my_style.safetensors:0.8`."""

import math
from pathlib import Path
from typing import NamedTuple


class Weighted(NamedTuple):
    """A file, and what its change is multiplied by."""

    path: Path
    weight: float


def weighted(text: str) -> Weighted:
    """`FILE` or `FILE:WEIGHT`; the weight is 1 when left out. Raises ValueError for a weight that is not finite."""
    path, colon, number = text.rpartition(":")
    try:
        weight = float(number) if colon and path else None
    except ValueError:  # a colon in the path itself
        weight = None
    if weight is None:
        return Weighted(Path(text), 1.0)
    if not math.isfinite(weight):
        raise ValueError(text)
    return Weighted(Path(path), weight)
