"""Writing files so that they are complete or absent: a temporary name, fsync, rename."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from patina.errors import PatinaError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on a clean exit it becomes `path`, on an error it is removed.

    The data are on the disk before the rename, so that a crash leaves the old file or the new one, never half. Raises
    PatinaError where `path` is a folder.
    """
    if path.is_dir():
        raise PatinaError(f"{path} is a folder, and a file is to be written there; choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text with plain newlines, complete or not at all."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")
