"""What a sheet's XML says and openpyxl's frugal mode does not: merged cells, uncomputed formulas, its true size."""

from typing import IO, NamedTuple
from xml.etree.ElementTree import Element, iterparse

from openpyxl.utils.cell import coordinate_to_tuple, range_boundaries

from patina.errors import PatinaError
from patina.text.records import LIMITS

MOST_ROWS, MOST_CELLS = 1_048_576, 2_000_000
"""The rows are Excel's own limit; the cells are those that hold anything."""

Spot = tuple[int, int]
"""Row from 1, column from 0."""


class Marks(NamedTuple):
    """What was found in one sheet."""

    merged: dict[Spot, Spot]
    """Each cell below the first row of a merged one -> the cell that holds its text."""
    uncomputed: set[Spot]
    """Cells with a formula and no value: a program wrote them, and no spreadsheet has computed them."""


def marks_of(sheet: IO[bytes], name: str) -> Marks:
    """One pass over a sheet's XML. Raises PatinaError past the bounds, before anybody builds rows of it."""
    marks, cells = Marks({}, set()), 0
    for _, element in iterparse(sheet):
        match element.tag.rpartition("}")[2]:
            case "c":
                cells += _cell(element, marks)
            case "mergeCell":
                _merge(element, marks)
            case "row":
                if cells > MOST_CELLS or int(element.get("r") or 0) > MOST_ROWS:
                    raise PatinaError(f"{name}: holds more than {MOST_CELLS:,} cells or {MOST_ROWS:,} rows; {LIMITS}")
                element.clear()
    return marks


def _cell(element: Element, marks: Marks) -> bool:
    """Whether the cell holds anything."""
    held = {child.tag.rpartition("}")[2] for child in element if child.text or len(child)}
    place = element.get("r")
    if place is not None:
        row, column = coordinate_to_tuple(place)
        if row > MOST_ROWS:
            raise ValueError(f"cell {place} lies below the last row that a sheet can have")
        if "f" in held and "v" not in held:
            marks.uncomputed.add((row, column - 1))
    return bool(held)


def _merge(element: Element, marks: Marks) -> None:
    left, top, _, bottom = range_boundaries(element.get("ref") or "")
    if left is None or top is None or bottom is None:
        return
    head = (top, left - 1)
    marks.merged.update({(row, left - 1): head for row in range(top + 1, min(bottom, MOST_ROWS) + 1)})
