"""Records in JSON: one object a line (jsonl), or a list of objects (json)."""

import json
from pathlib import Path

from patina.errors import PatinaError
from patina.text.decode import read_text
from patina.text.records import Findings, Group, Known, Record

BROKEN = (ValueError, RecursionError)
"""What Python's parser raises: broken JSON, numbers of thousands of digits, lists a thousand deep."""


def read_jsonl(path: Path, known: Known, findings: Findings) -> list[Group]:
    """One object a line; blank lines are skipped, broken ones are faults."""
    text, encoding = read_text(path)
    findings.note(f"{path.name}: {encoding}")
    if text.lstrip().startswith("[") and isinstance(parsed(text), list):
        raise PatinaError(f"{path.name}: is one JSON list and not an object a line; rename it to {path.stem}.json")
    records = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{path.name}:{number}"
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            findings.fault(f"{place}:{error.colno}", f"broken JSON ({error.msg}); {_hint(error)}")
        except BROKEN as error:
            findings.fault(place, f"broken JSON ({error}); correct the line or delete it")
        else:
            _add(records, value, place, findings)
    return [Group(path.name, records)]


def read_json(path: Path, known: Known, findings: Findings) -> list[Group]:
    """A list of objects, or an object with one list of them in it, or a single one. Raises PatinaError otherwise."""
    text, encoding = read_text(path)
    findings.note(f"{path.name}: {encoding}")
    if not text.strip():
        return [Group(path.name, [])]
    whole = _whole(path, text)
    if isinstance(whole, dict) and known(list(whole)):
        return [Group(path.name, [Record(whole, path.name)])]
    if isinstance(whole, list):
        lists = {"": whole}
    else:
        lists = {f" {key}": value for key, value in whole.items() if _objects(value)} if isinstance(whole, dict) else {}
    if len(lists) != 1:
        raise PatinaError(
            f"{path.name}: must be one list of examples, and holds {len(lists)}; "
            'write [{"question": ..., "answer": ...}, ...]'
        )
    ((name, values),) = lists.items()
    records: list[Record] = []
    for at, value in enumerate(values):
        _add(records, value, f"{path.name}{name}[{at}]", findings)
    return [Group(path.name, records)]


def _add(records: list[Record], value: object, place: str, findings: Findings) -> None:
    if isinstance(value, dict):
        records.append(Record(value, place))
    else:
        findings.fault(place, 'is not an object; write {"question": ..., "answer": ...}')


def _objects(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _whole(path: Path, text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        lines = [line for line in text.split("\n") if line.strip()]
        if len(lines) > 1 and all(isinstance(parsed(line), dict) for line in lines[:2]):
            raise PatinaError(
                f"{path.name}: is one object a line and not a list; rename it to {path.stem}.jsonl"
            ) from error
        place = f"{path.name}:{error.lineno}:{error.colno}"
        raise PatinaError(f"{place}: broken JSON ({error.msg}); {_hint(error)}") from error
    except BROKEN as error:
        raise PatinaError(f"{path.name}: broken JSON ({error}); correct it") from error


def _hint(error: json.JSONDecodeError) -> str:
    """What is usually the matter, by the character that was not expected."""
    found = error.doc[error.pos : error.pos + 1]
    if found and found in "“”‘’'":
        return 'write straight double quotes: "'
    if error.msg.startswith("Invalid control"):
        return r"write a line break within a text as \n, a tab as \t"
    if not found or error.msg.startswith("Unterminated"):
        return "it ends too early: close what was opened"
    return f"see what stands at {found!r}: a comma, quote or bracket may be missing or one too many"


def parsed(text: str) -> object:
    """The value, None where it is broken."""
    try:
        return json.loads(text)
    except BROKEN:
        return None
