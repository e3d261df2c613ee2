"""Rows from the files that people keep them in.

`read_rows(path, columns)` gives the rows of a file or of a folder of files, or raises PatinaError with all faults.
`read(path, columns)` gives a `Reading`: the same rows, and notes that say what was found and what was guessed.
`survey(path, columns)` does not raise for faults but gives them beside the rows, for those who check and mend.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from patina.data.images import natural_key
from patina.errors import PatinaError
from patina.text.hub import is_set, read_set
from patina.text.jsons import read_json, read_jsonl
from patina.text.plain import read_plain, read_raw
from patina.text.records import Findings, Group, Known, Record, blank
from patina.text.rows import Row
from patina.text.separated import read_separated
from patina.text.shapes import Layout, check_columns, layouts, recognise
from patina.text.turns import build
from patina.text.xlsx import read_xlsx

Reader = Callable[[Path, Known, Findings], list[Group]]
READERS: Mapping[str, Reader] = {
    ".xlsx": read_xlsx,
    ".xlsm": read_xlsx,
    ".csv": read_separated,
    ".tsv": read_separated,
    ".txt": read_plain,
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".md": read_raw,
}
"""Suffix -> what reads it."""
SAVE_AS = {
    ".xls": "open it in Excel or WPS and save it as .xlsx",
    ".et": "open it in WPS and save it as .xlsx",
    ".ods": "open it in LibreOffice and save it as .xlsx",
    ".numbers": "open it in Numbers and export it as .xlsx or .csv",
    ".doc": "open it in Word and save it as plain text (.txt) with 问：... and 答：... lines",
    ".docx": "open it in Word and save it as plain text (.txt) with 问：... and 答：... lines",
    ".pdf": "copy the questions and answers into an .xlsx or .txt",
    ".parquet": "save it as .jsonl: pandas.read_parquet(...).to_json(..., orient='records', lines=True)",
    ".arrow": "save it as .jsonl: datasets.load_from_disk(...).to_json(...)",
}
"""Suffix that is not read -> what to do."""
ASIDE = re.compile(r"(\.|~\$|README|LICEN[CS]E|dataset_infos?\.json)", re.IGNORECASE)
"""How names begin that lie in a folder of data without being data: hidden, lock files, what describes it."""
SHOWN = 20
"""Faults that a message lists; the rest are counted."""


@dataclass(frozen=True)
class Reading:
    """What a file or folder holds."""

    rows: list[Row]
    notes: list[str]
    """What was found and decided, a sentence each: encodings, columns, guesses, what was left out."""
    faults: list[str]
    """What cannot be trained on, a sentence each; its rows are not among the rows."""


def read_rows(path: Path, columns: Mapping[str, str] | None = None) -> list[Row]:
    """The rows of a file, or of all files of a folder in natural order.

    `columns` says what the headings mean where they are not known: {"question": "标题", "answer": "正文"}, also
    `input`, `system`, `history`, `conversation`, `text`. Raises PatinaError with every fault, 20 of them spelled out.
    """
    return read(path, columns).rows


def read(path: Path, columns: Mapping[str, str] | None = None) -> Reading:
    """As `read_rows`, with what should be said about it; there are rows, and no faults."""
    reading = survey(path, columns)
    if reading.faults:
        raise PatinaError(complaint(path, reading.faults))
    return reading


def survey(path: Path, columns: Mapping[str, str] | None = None) -> Reading:
    """All that can be read and all that is wrong. Raises PatinaError only where path or columns make no sense."""
    if columns:
        check_columns(columns)
    findings = Findings()
    rows = [row for file in files_of(path, findings) for row in _rows(file, columns, findings)]
    if not rows and not findings.faults:
        findings.fault(path.name, "there are no rows in it; write at least one question and answer")
    return Reading(rows, list(findings.notes), list(findings.faults))


def files_of(path: Path, findings: Findings) -> list[Path]:
    """The file, or those of a folder that can hold data. Raises PatinaError where there are none."""
    if path.is_file() or (is_set(path) and path.suffix.lower() not in (*READERS, *SAVE_AS)):
        return [path]
    if not path.is_dir():
        raise PatinaError(f"{path}: there is no such file or folder; give the path of the data")
    files = sorted((file for file in path.iterdir() if file.is_file()), key=lambda file: natural_key(file.name))
    aside = [file.name for file in files if ASIDE.match(file.name) or file.suffix.lower() not in (*READERS, *SAVE_AS)]
    if aside:
        findings.note(f"{path.name}: not read: {', '.join(aside[:SHOWN])}{', ...' if len(aside) > SHOWN else ''}")
    found = [file for file in files if file.name not in aside]
    if not found:
        raise PatinaError(f"{path}: there is no file of data in this folder; put {', '.join(READERS)} there")
    return found


def _rows(path: Path, columns: Mapping[str, str] | None, findings: Findings) -> list[Row]:
    """The rows of one file; where it cannot be read at all, a fault and none."""
    suffix = path.suffix.lower()
    if suffix not in READERS and not is_set(path):
        remedy = SAVE_AS.get(suffix, f"save it as one of {', '.join(READERS)}")
        findings.fault(path.name, f"files of the kind {suffix or '(no suffix)'} are not read; {remedy}")
        return []
    try:
        groups = reader_of(path)(path, lambda headings: recognise(headings, columns) is not None, findings)
    except PatinaError as fault:
        findings.faults[str(fault)] = None
        return []
    groups = [Group(group.place, [record for record in group.records if not _empty(record)]) for group in groups]
    found = layouts(groups, columns, findings)
    pairs = zip(groups, found, strict=True)
    return [row for group, layout in pairs if layout for row in _built(group, layout, columns, findings)]


def reader_of(path: Path) -> Reader:
    """What reads it: by its suffix, or else as a data set of the hub."""
    return READERS.get(path.suffix.lower(), read_set)


def _empty(record: Record) -> bool:
    return all(map(blank, record.fields.values()))


def _built(group: Group, fallback: Layout, columns: Mapping[str, str] | None, findings: Findings) -> list[Row]:
    """Each record by its own keys; one that lacks some, by those of the first, so that it is told what is missing."""
    pairs = [(record, recognise(tuple(record.fields), columns) or fallback) for record in group.records]
    filled = [(record, layout) for record, layout in pairs if not _unfilled(record, layout)]
    if len(filled) < len(pairs):
        findings.note(f"{group.place}: rows without question and answer left out: {len(pairs) - len(filled)}")
    rows = [build(record, layout, findings) for record, layout in filled]
    used = {str(layout): layout for _, layout in filled}
    for name in used:
        findings.note(f"{group.place}: {name}")
    unused = {key for record in group.records for key in record.fields}
    unused -= {heading for layout in used.values() for heading in layout.fields.values()}
    if unused:
        findings.note(f"{group.place}: not used: {', '.join(sorted(unused)[:SHOWN])}")
    return [row for row in rows if row is not None]


def _unfilled(record: Record, layout: Layout) -> bool:
    """Whether all that would be read is there and empty, as in rows that only have their number yet."""
    return all(heading in record.fields and blank(record.fields[heading]) for heading in layout.fields.values())


def complaint(path: Path, faults: Sequence[str]) -> str:
    """All faults of a file or folder, a line each."""
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    more = [f"and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
    return "\n".join([f"{path} cannot be trained on: {count}", *(f"  {f}" for f in [*faults[:SHOWN], *more])])
