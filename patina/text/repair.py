"""A repaired copy of rows: what can be trained on, each row once, as the messages that every trainer reads."""

import json
from collections.abc import Sequence
from pathlib import Path

from patina.errors import PatinaError
from patina.files import write_text
from patina.text.check import repeated
from patina.text.read import Reading
from patina.text.rows import Row


def check_target(path: Path, source: Path, force: bool) -> None:
    """Raises PatinaError where a repaired copy of `source` must not be written to `path`."""
    if path.suffix.lower() != ".jsonl":
        raise PatinaError(f"{path}: a repaired copy is a .jsonl; write --repair {path.with_suffix('.jsonl')}")
    if source.is_dir() and path.resolve().parent == source.resolve():
        raise PatinaError(f"{path}: lies among the data, and would be read with them; name another folder")
    if path.exists() and not force:
        raise PatinaError(f"{path}: is there already; name another file, or add --force to write over it")


def repair(reading: Reading, path: Path) -> list[str]:
    """Write the rows to `path`, complete or not at all, and say what became of the others, a sentence each."""
    again = repeated(reading.rows)
    kept = [row for at, row in enumerate(reading.rows) if at not in again]
    if not kept:
        raise PatinaError(f"{path}: is not written, for no row can be trained on")
    write_text(path, "".join(f"{_line(row)}\n" for row in kept))
    rows = reading.rows
    dropped = [f"left out, repeats {rows[earlier].place}: {rows[at].place}" for at, earlier in again.items()]
    return [*(f"left out: {fault}" for fault in reading.faults), *dropped, f"{path}: {_count(kept)} written"]


def _count(rows: Sequence[Row]) -> str:
    return f"{len(rows)} row{'s' if len(rows) != 1 else ''}"


def _line(row: Row) -> str:
    messages = [{"role": turn.role, "content": turn.text} for turn in row.turns]
    return json.dumps({"messages": messages} if messages else {"text": row.text}, ensure_ascii=False)
