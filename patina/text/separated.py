"""Tables in text files: csv and tsv, whatever separates the fields."""

import csv
import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from patina.errors import PatinaError
from patina.text.decode import read_text
from patina.text.records import Findings, Group, Known
from patina.text.tables import Line, letter, to_group

SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar", "，": "a Chinese comma"}
"""What may separate fields: of equals the first."""
SAMPLE = 50
"""Lines that the separator is judged by."""


def read_separated(path: Path, known: Known, findings: Findings) -> list[Group]:
    """The records of a csv or tsv file. Raises PatinaError where its quotes do not match up."""
    text, encoding = read_text(path)
    separator = _separator(text, known)
    findings.note(f"{path.name}: {encoding}, fields separated by {SEPARATORS[separator]}")
    lines = list(_lines(path, text, separator))
    if lines:
        width = len(lines[0].cells)
        for line in lines[1:]:
            if len(line.cells) > width:
                findings.fault(
                    f"{path.name}:{line.number}",
                    f"has {len(line.cells)} fields where line {lines[0].number} names {width}; put a text that holds "
                    f"{SEPARATORS[separator]} between double quotes",
                )
        lines = [Line(line.number, line.cells[:width]) for line in lines]
    return [to_group(path.name, lines, partial(_place, path.name), known, findings)]


def _place(name: str, line: int, column: int) -> str:
    return f"{name}:{line} column {letter(column)}"


def _lines(path: Path, text: str, separator: str) -> Iterator[Line]:
    """The rows that hold anything, each with the line it begins in."""
    reader, number = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True), 1
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                yield Line(number, fields)
            number = reader.line_num + 1
    except csv.Error as error:
        raise PatinaError(
            f"{path.name}:{number}: the double quotes do not match up ({error}); a field with quotes in it begins and "
            "ends with one, and each within it is written twice"
        ) from error


def _separator(text: str, known: Known) -> str:
    """The one by which the headings are known; else the one that cuts most lines into equally many fields."""
    lines = [line for line in text.split("\n") if line.strip()][:SAMPLE]
    if not lines:
        return ","
    for separator in SEPARATORS:
        if known([name.strip('" ') for name in lines[0].split(separator)]):
            return separator
    return max(SEPARATORS, key=lambda separator: _evenness(lines, separator))


def _evenness(lines: list[str], separator: str) -> int:
    count = lines[0].count(separator)
    return sum(line.count(separator) == count for line in lines) if count else 0
