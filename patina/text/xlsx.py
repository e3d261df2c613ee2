"""Tables in Excel workbooks: every sheet, as it is shown, within bounds that no honest table reaches."""

from __future__ import annotations

import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from patina.errors import PatinaError
from patina.text.decode import MOST_BYTES
from patina.text.records import LIMITS, Findings, Group, Known, Spoiled
from patina.text.shown import shown
from patina.text.tables import Line, letter, to_group

if TYPE_CHECKING:
    from openpyxl.worksheet._read_only import ReadOnlyWorksheet

    from patina.text.sheetmarks import Marks

MOST_UNPACKED = 512 << 20
"""Bytes of a workbook's parts together; a million cells of text take a quarter of it."""
MOST_COLUMNS = 256
"""Columns beyond are not looked at."""
DAMAGE = (zipfile.BadZipFile, zipfile.LargeZipFile, KeyError, ValueError, TypeError, IndexError, AttributeError)
DAMAGE += (SyntaxError, EOFError, NotImplementedError, RuntimeError, OSError, zlib.error)
"""What openpyxl, zipfile and the XML parsers (SyntaxError) raise on workbooks that are damaged, or none."""


def read_xlsx(path: Path, known: Known, findings: Findings) -> list[Group]:
    """The records of each sheet that holds any. Raises PatinaError where it is no workbook, or past the bounds."""
    _check_size(path)
    from openpyxl.reader.excel import ExcelReader  # deferred: only workbooks need it

    with warnings.catch_warnings():
        # It remarks on what it leaves out, styles and drop-down lists, none of which is text.
        warnings.simplefilter("ignore")
        try:
            # a stream of ours: openpyxl leaves parts of a path's archive open where one of them is damaged
            with path.open("rb") as stream:
                reader = ExcelReader(stream, read_only=True, data_only=True, keep_links=False)
                reader.read()
                parts = {sheet.name: rel.target for sheet, rel in reader.parser.find_sheets()}
                return [
                    _group(path.name, sheet, _marks(path.name, sheet, reader.archive, parts), known, findings)
                    for sheet in reader.wb.worksheets
                ]
        except PatinaError:
            raise
        except DAMAGE as error:
            raise PatinaError(f"{path.name}: is no Excel workbook or a damaged one ({error}); {RESAVE}") from error


RESAVE = "open it in Excel or WPS and save it as .xlsx again"
UNCOMPUTED = f"the cell holds a formula that no spreadsheet has computed yet; {RESAVE}"


def _check_size(path: Path) -> None:
    """A zip file tells how large its parts are, and Python unpacks no more than it tells."""
    if path.stat().st_size > MOST_BYTES:
        raise PatinaError(f"{path.name}: is larger than {MOST_BYTES >> 20} MB; {LIMITS}")
    with path.open("rb") as stream:
        if stream.read(4) == b"\xd0\xcf\x11\xe0":
            raise PatinaError(f"{path.name}: is an old .xls, or locked with a password; {RESAVE}, without a password")
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(part.file_size for part in archive.infolist())
    except DAMAGE as error:
        raise PatinaError(f"{path.name}: is no Excel workbook ({error}); {RESAVE}") from error
    if unpacked > MOST_UNPACKED:
        size = f"{unpacked >> 20} MB, more than {MOST_UNPACKED >> 20}"
        raise PatinaError(f"{path.name}: unpacks to {size}; {LIMITS}")


def _marks(file: str, sheet: ReadOnlyWorksheet, archive: zipfile.ZipFile, parts: Mapping[str, str]) -> Marks:
    from patina.text.sheetmarks import marks_of  # deferred with openpyxl

    with archive.open(parts[sheet.title]) as part:
        return marks_of(part, f"{file} {sheet.title}")


def _group(file: str, sheet: ReadOnlyWorksheet, marks: Marks, known: Known, findings: Findings) -> Group:
    name = f"{file} {sheet.title}"
    lines = list(_lines(sheet, marks))
    if lines and sheet.sheet_state != "visible":
        findings.note(f"{name}: this sheet is hidden and was read like the others")
    if any(line.number == row for line in lines for row, _ in marks.merged):
        findings.note(f"{name}: the text of a merged cell counts for each of its rows")
    return to_group(name, lines, partial(_place, name), known, findings)


def _place(name: str, line: int, column: int) -> str:
    return f"{name}!{letter(column)}{line}"


def _lines(sheet: ReadOnlyWorksheet, marks: Marks) -> Iterator[Line]:
    """The rows that hold a text of their own, each cell as the sheet shows it."""
    heads, before = set(marks.merged.values()), None
    texts: dict[tuple[int, int], str] = {}
    sheet.reset_dimensions()  # what a file says about its own size is often wrong
    for number, row in enumerate(sheet.iter_rows(max_col=MOST_COLUMNS), 1):
        if row is before:  # openpyxl gives one tuple for all rows of a gap; a cell in the last row makes a million
            continue
        before = row
        cells = ["" if cell.value is None else shown(cell.value, cell.number_format) for cell in row]
        spots = [(number, column) for column in range(len(cells))]
        texts.update((spot, cell) for spot, cell in zip(spots, cells, strict=True) if spot in heads)
        errors = {column: _error(str(cell.value)) for column, cell in enumerate(row) if cell.data_type == "e"}
        formulas = {column: Spoiled(UNCOMPUTED) for _, column in marks.uncomputed.intersection(spots)}
        if any(cells) or formulas:
            merged = [marks.merged.get(spot) for spot in spots]
            filled = [texts.get(head, "") if head else cell for cell, head in zip(cells, merged, strict=True)]
            yield Line(number, filled, {**errors, **formulas})


def _error(value: str) -> Spoiled:
    return Spoiled(f"the cell shows the error {value}; correct its formula or write the text")
