"""What a text set is made of."""

from typing import NamedTuple


class Turn(NamedTuple):
    """One thing said."""

    role: str
    text: str


class Row(NamedTuple):
    """One conversation, or a plain text."""

    turns: tuple[Turn, ...]
    place: str
    text: str = ""
