"""Rows of cells into records: finds the line of headings, or sees that there is none."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from patina.text.records import Findings, Group, Known, Record, Spoiled

DEEPEST_HEADING = 10
"""Lines from the top in which the headings are looked for: people put a title or a date above them."""
LONGEST_HEADING = 30
SENTENCE_ENDS = "。？！?!…；;."


@dataclass(frozen=True)
class Line:
    """The cells of one row as texts, and its number in the file from 1."""

    number: int
    cells: Sequence[str]
    spoiled: Mapping[int, Spoiled] = field(default_factory=dict)
    """Column -> why its text is none."""


def to_group(
    name: str, lines: Sequence[Line], place: Callable[[int, int], str], known: Known, findings: Findings
) -> Group:
    """The records of a table under their headings.

    `place(line number, column from 0)` names a cell. Without a line of headings they are called column A, column B.
    """
    lines = [line for line in lines if any(cell.strip() for cell in line.cells)]
    top = next((at for at, line in enumerate(lines[:DEEPEST_HEADING]) if known(_names(line))), None)
    if top is None and lines and _speaks(lines[0]):
        findings.note(f"{name}: the first row looks like an example, so the columns are taken to have no headings")
        width = max(len(line.cells) for line in lines)
        return _group(name, [f"column {letter(column)}" for column in range(width)], lines, place, findings)
    if top:
        findings.note(f"{name}: what stands above the headings in row {lines[top].number} is left out")
    return _group(name, list(lines[top or 0].cells) if lines else [], lines[(top or 0) + 1 :], place, findings)


def letter(column: int) -> str:
    """A column's letters in a spreadsheet: 0 is A, 26 is AA."""
    letters = ""
    while column >= 0:
        column, rest = divmod(column, 26)
        letters, column = chr(ord("A") + rest) + letters, column - 1
    return letters


def _names(line: Line) -> list[str]:
    return [cell for cell in line.cells if cell.strip()]


def _speaks(line: Line) -> bool:
    """Whether a row reads as an example rather than as headings."""
    return any(len(name) > LONGEST_HEADING or name.rstrip()[-1] in SENTENCE_ENDS for name in _names(line))


def _text(line: Line, column: int) -> str:
    return line.cells[column].strip() if column < len(line.cells) else ""


def _group(
    name: str, headings: list[str], lines: Sequence[Line], place: Callable[[int, int], str], findings: Findings
) -> Group:
    headings = [heading.strip() for heading in headings]
    for at, heading in enumerate(headings):
        if heading and heading in headings[:at]:
            findings.fault(name, f"two columns are called {heading}; rename one of them, or delete it")
    records = []
    for line in lines:
        for at, cell in enumerate(line.cells):
            if cell.strip() and not (at < len(headings) and headings[at]):
                findings.note(f"{name}: not used: column {letter(at)}, which has no heading")
        named = [(heading, at) for at, heading in enumerate(headings) if heading]
        fields = {heading: line.spoiled.get(at, _text(line, at)) for heading, at in named}
        cells = {heading: place(line.number, at) for heading, at in named}
        records.append(Record(fields, place(line.number, 0), cells))
    return Group(name, records)
