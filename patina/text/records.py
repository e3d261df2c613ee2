"""What every reader gives: records of named fields, each knowing where it stands, and what is to be said about them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

LIMITS = "a training set by hand is far smaller; split the file"
"""What to do about a file past a limit: nobody's questions and answers are, so that such a file is a mistake."""


@dataclass(frozen=True)
class Record:
    """The fields of one row as the file names them."""

    fields: Mapping[str, object]
    """Heading or key -> value: a text in tables, whatever it is in JSON."""
    place: str
    """Where it stands: "faq.jsonl:12"."""
    cells: Mapping[str, str] = field(default_factory=dict)
    """Heading -> where its cell stands, in tables: "问答.xlsx 表1!B17"."""

    def at(self, key: str) -> str:
        """Where the field is, as narrowly as can be said."""
        return self.cells.get(key) or (f"{self.place}, key {key}" if key in self.fields else self.place)


@dataclass(frozen=True)
class Spoiled:
    """What a field holds instead of a text that a spreadsheet could not give."""

    reason: str
    """What is the matter and what to do."""


@dataclass(frozen=True)
class Group:
    """Records that lie together: a file, or a sheet of one."""

    place: str
    records: Sequence[Record]


@dataclass
class Findings:
    """What was found while reading: both in the order of the file, none twice."""

    notes: dict[str, None] = field(default_factory=dict)
    """What was decided for the user, and should be said."""
    faults: dict[str, None] = field(default_factory=dict)
    """What has to be mended before training: where, what, what to do."""

    def note(self, text: str) -> None:
        """Remember what was decided."""
        self.notes[text] = None

    def fault(self, place: str, text: str) -> None:
        """Remember what cannot be used."""
        self.faults[f"{place}: {text}"] = None


Known = Callable[[Sequence[str]], bool]
"""Whether these headings say which column is the question and which the answer."""


def blank(value: object) -> bool:
    """Whether a field holds nothing: missing, white space, an empty list."""
    return value is None or value in ([], {}) or (isinstance(value, str) and not value.strip())
