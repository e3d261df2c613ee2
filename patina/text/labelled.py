"""Texts with a label each, from the tables and JSON files that people keep them in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from patina.errors import PatinaError
from patina.text.hub import is_set
from patina.text.read import READERS, Reading, complaint, files_of, reader_of
from patina.text.records import Findings, Group, Record, Spoiled, blank
from patina.text.rows import Row
from patina.text.shapes import fold

WORDS: Mapping[str, tuple[str, ...]] = {
    "text": (
        *("text", "sentence", "content", "review", "comment", "message", "title", "question", "input"),
        *("文本", "内容", "正文", "句子", "评论", "评价", "留言", "标题", "问题", "文本内容", "評論", "內容"),
    ),
    "label": (
        *("label", "labels", "class", "category", "sentiment", "intent", "target", "tag", "label_text"),
        *("标签", "类别", "分类", "情感", "意图", "类型", "標籤", "類別", "分類"),
    ),
}
"""Meaning -> the headings that have it, the better known first, compared as `shapes.fold` has them."""
KINDS = tuple(suffix for suffix in READERS if suffix not in (".txt", ".md"))
"""Suffixes of files that have columns or keys."""
NAME_THEM = "write text.columns: [text=HEADING, label=HEADING] with the headings that hold them"


def read_labelled(path: Path, columns: Mapping[str, str]) -> Reading:
    """The texts of a file, or of all files of a folder in natural order, each a `Row` with `text` and `label`.

    `columns` (text, label -> heading) is the user's word and then decides alone. Raises PatinaError with every fault.
    """
    reading = survey_labelled(path, columns)
    if reading.faults:
        raise PatinaError(complaint(path, reading.faults))
    return reading


def survey_labelled(path: Path, columns: Mapping[str, str]) -> Reading:
    """As `read_labelled`, with the faults beside the rows that have none."""
    if columns and columns.keys() != WORDS.keys():
        raise PatinaError(f"text.columns: must name the text and the label; {NAME_THEM}")
    findings = Findings()
    rows = [row for file in files_of(path, findings) for row in _rows(file, columns, findings)]
    if not rows and not findings.faults:
        findings.fault(path.name, "there are no rows in it; write texts with a label each")
    return Reading(rows, list(findings.notes), list(findings.faults))


def fields_of(headings: Sequence[str], columns: Mapping[str, str]) -> dict[str, str] | None:
    """Meaning -> heading, for `text` and `label`; None where these headings do not say."""
    known = {fold(heading): heading for heading in reversed(headings)}
    words = {meaning: (heading,) for meaning, heading in columns.items()} if columns else WORDS
    found = {
        meaning: next((known[fold(name)] for name in names if fold(name) in known), None)
        for meaning, names in words.items()
    }
    whole = {meaning: heading for meaning, heading in found.items() if heading is not None}
    return whole if len(whole) == len(WORDS) else None


def _rows(path: Path, columns: Mapping[str, str], findings: Findings) -> list[Row]:
    """The rows of one file; where it cannot be read at all, a fault and none."""
    suffix = path.suffix.lower()
    if suffix not in KINDS and not is_set(path):
        findings.fault(path.name, f"has no columns; save texts and labels as one of {', '.join(KINDS)}")
        return []
    try:
        groups = reader_of(path)(path, lambda headings: fields_of(headings, columns) is not None, findings)
    except PatinaError as fault:
        findings.faults[str(fault)] = None
        return []
    full = [Group(group.place, [record for record in group.records if _holds_any(record)]) for group in groups]
    known = [(group, _first(group, columns)) for group in full if group.records]
    read = [row for group, fields in known if fields for row in _of_group(group, fields, columns, findings)]
    for group, fields in known:
        if fields is None:
            _unknown(group, columns, any(found for _, found in known), findings)
    return read


def _holds_any(record: Record) -> bool:
    return not all(map(blank, record.fields.values()))


def _first(group: Group, columns: Mapping[str, str]) -> dict[str, str] | None:
    """The fields of the first record that has both."""
    seen = dict.fromkeys(tuple(record.fields) for record in group.records)
    return next((fields for headings in seen if (fields := fields_of(headings, columns))), None)


def _unknown(group: Group, columns: Mapping[str, str], others: bool, findings: Findings) -> None:
    headings = list(dict.fromkeys(heading for record in group.records for heading in record.fields))[:20]
    if others:
        findings.note(f"{group.place}: left out, for its headings ({', '.join(headings)}) name no text and label")
        return
    wanted = f" {' and '.join(columns.values())}" if columns else ""
    remedy = "correct text.columns" if columns else NAME_THEM
    findings.fault(
        group.place,
        f"which column{wanted} is the text and which the label? The headings are {', '.join(headings)}; {remedy}",
    )


def _of_group(group: Group, fields: dict[str, str], columns: Mapping[str, str], findings: Findings) -> list[Row]:
    findings.note(f"{group.place}: text: {fields['text']}, label: {fields['label']}")
    rows = [_row(record, fields_of(tuple(record.fields), columns) or fields, findings) for record in group.records]
    return [row for row in rows if row is not None]


def _row(record: Record, fields: Mapping[str, str], findings: Findings) -> Row | None:
    said = {meaning: _said(record, meaning, heading, findings) for meaning, heading in fields.items()}
    if not said["text"] or not said["label"]:
        return None
    return Row((), record.place, said["text"], said["label"])


def _said(record: Record, meaning: str, heading: str, findings: Findings) -> str | None:
    """What the field holds as a text; None where it cannot be used, which is a fault."""
    value, place = record.fields.get(heading), record.at(heading)
    if blank(value):
        findings.fault(place, f"the {meaning} is empty; write it, or delete the row")
    elif isinstance(value, Spoiled):
        findings.fault(place, value.reason)
    elif isinstance(value, str):
        return value.strip()
    elif isinstance(value, bool):
        return str(value).lower()
    elif isinstance(value, int | float):
        return str(int(value)) if value == int(value) else str(value)
    else:
        findings.fault(place, f"the {meaning} is a {type(value).__name__}; write one word, number or text")
    return None
