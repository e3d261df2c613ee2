"""Writing files so that they are complete or absent: a temporary name, fsync, rename."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from patina.errors import PatinaError

MB = 10**6


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


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """As `replacing`, for a folder: yields an empty one; what was at `path` is gone only once that is complete."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.mkdir(parents=True, exist_ok=True)
    try:
        yield part
        for file in part.rglob("*"):
            if file.is_file():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
        if path.is_dir():
            shutil.rmtree(path)
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def require_room(folder: Path, size: int) -> None:
    """Raise PatinaError where the disk of `folder`, which need not be there yet, has less than `size` bytes left."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    disk = shutil.disk_usage(there)
    if disk.total and disk.free < size:  # some network drives give no sizes: all are 0
        raise PatinaError(
            f"{folder}: {size / MB:,.1f} MB are to be written and its disk has {disk.free / MB:,.1f} MB left; "
            "free space or choose another folder"
        )


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text with plain newlines, complete or not at all."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")
