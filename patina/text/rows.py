"""What text training learns from: a row is one example, a conversation or raw text, whatever file it came in."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

Role = Literal["system", "user", "assistant"]


class Turn(NamedTuple):
    """One thing said in a conversation, by whom."""

    role: Role
    text: str


@dataclass(frozen=True)
class Row:
    """One training example.

    A conversation has at most one system turn, the first; then the user and the assistant alternate, and the assistant
    has the last word. No turn is empty.
    """

    turns: tuple[Turn, ...]
    """The conversation; empty for raw text."""
    place: str
    """Where it stands, for messages: "问答.xlsx 表1!B17", "faq.jsonl:12", "set.json[3]"."""
    text: str = ""
    """Raw text to continue as it is, or to tell the label of; then there are no turns."""
    label: str = ""
    """Which class the text belongs to; empty where none is asked for."""
