"""Rows from the files that people keep them in: `read_rows(path)` gives them, or raises with all that is wrong."""

import json
from pathlib import Path

from patina.errors import PatinaError
from patina.text.rows import Row, Turn


def read_rows(path: Path) -> list[Row]:
    """The rows of a file. Raises PatinaError with all faults."""
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    rows = [_row(json.loads(line), f"{path.name}:{at}") for at, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise PatinaError(f"{path}: there are no rows in it; write at least one question and answer")
    return rows


def _row(fields: dict[str, str], place: str) -> Row:
    return Row((Turn("user", fields["instruction"]), Turn("assistant", fields["output"])), place)
