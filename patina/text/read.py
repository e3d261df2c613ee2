"""Reading conversations from files."""

import json
from pathlib import Path

from patina.text.rows import Row, Turn


def read_rows(path: Path) -> list[Row]:
    """The rows of an alpaca jsonl."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            facts = json.loads(line)
            turns = (Turn("user", facts["instruction"]), Turn("assistant", facts["output"]))
            rows.append(Row(turns, f"{path}:{number}"))
    return rows
