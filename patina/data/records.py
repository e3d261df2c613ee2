"""The records of a CSV with the lines that each takes up, so that one can be changed and the rest kept."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from patina.errors import PatinaError


@dataclass(frozen=True)
class Record:
    """A record of a CSV that holds anything, in the lines from `first` up to `stop`, counted from 0."""

    first: int
    stop: int
    fields: list[str]

    @property
    def line(self) -> int:
        """Where it begins, as editors count."""
        return self.first + 1


def records(path: Path, text: str) -> Iterator[Record]:
    """The records in which something is. Raises PatinaError naming the line whose quotes do not match up."""
    reader, first = csv.reader(split_lines(text), strict=True), 0
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                yield Record(first, reader.line_num, fields)
            first = reader.line_num
    except csv.Error as error:
        raise PatinaError(
            f"{path}, line {first + 1}: the double quotes do not match up ({error}); "
            "a quoted field begins and ends with one, and a quote within it is written twice"
        ) from error


def split_lines(text: str) -> list[str]:
    """Lines with their ends, as the reader of CSV counts them."""
    return list(io.StringIO(text, newline=""))
