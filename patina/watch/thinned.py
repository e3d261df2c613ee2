"""Fewer of a long row of things, the first and the last among them."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def thinned(things: Sequence[T], most: int) -> list[T]:
    """`most` of them at most, evenly between the first and the last."""
    last = len(things) - 1
    if last < most:
        return list(things)
    return [things[round(place * last / (most - 1))] for place in range(most)]
