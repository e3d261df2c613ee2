"""A list of a folder's files with their sizes and sha256, by which a damaged folder is told from a whole one."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

NAME = "manifest.json"


def write(folder: Path, names: Sequence[str]) -> None:
    """List the files of these names; to be written last, since it says that the others are whole. Raises OSError."""
    files = {name: _measured(folder / name) for name in names}
    (folder / NAME).write_text(json.dumps(files, indent=1), encoding="utf-8")


def compare(folder: Path) -> None:
    """Raise OSError where a listed file is missing or is other than was listed, or JSONDecodeError for a torn list."""
    listed = json.loads((folder / NAME).read_text(encoding="utf-8"))
    for name, was in listed.items():
        size = (folder / name).stat().st_size
        if size != was["bytes"]:
            raise OSError(f"{name} has {size:,} bytes of {was['bytes']:,}")
        if _measured(folder / name) != was:
            raise OSError(f"{name} holds other bytes than were written")


def _measured(path: Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}
