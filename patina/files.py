"""Writing files so that they are complete or absent: a temporary name, fsync, rename."""

import errno
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from patina.errors import PatinaError

MB = 10**6


def there(path: Path) -> bool:
    """Whether it is a file; a name made from another's may be longer than names can be, at which `is_file` raises."""
    return os.path.isfile(path)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on a clean exit it becomes `path`, on an error it is removed.

    The data are on the disk before the rename, so that a crash leaves the old file or the new one, never half. Raises
    PatinaError where `path` is a folder.
    """
    if path.is_dir():
        raise PatinaError(f"{path} is a folder, and a file is to be written there; choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path)
    try:
        yield part
        _sync(part)
        os.replace(part, path)
        _sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def part_of(path: Path) -> Path:
    """What a file is called while it is written."""
    return path.with_name(f".{path.name}.{os.getpid():07}.part")  # as long in one process as in the next


def nameable(path: Path) -> bool:
    """Whether the disk takes names as long as this one."""
    try:
        path.lstat()
    except OSError as error:
        return error.errno != errno.ENAMETOOLONG
    return True


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """As `replacing`, for a folder: yields an empty one; what was at `path` is gone only once that is in its place."""
    part, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("part", "old"))
    part.mkdir(parents=True, exist_ok=True)
    try:
        yield part
        for file in part.rglob("*"):
            if file.is_file():
                _sync(file)
        _sync_folder(part)
        _put(part, path, old)
        _sync_folder(path.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _put(part: Path, path: Path, old: Path) -> None:
    """A folder cannot be renamed onto one that holds something: that one steps aside, and back where this fails."""
    if not path.is_dir():
        part.rename(path)
        return
    path.rename(old)
    try:
        part.rename(path)
    except OSError:
        old.rename(path)
        raise


def remove_folder(path: Path) -> None:
    """Remove a folder and what it holds; it is whole or gone, also where that is interrupted (see `sweep`)."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    path.rename(part)
    shutil.rmtree(part, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what killed writers left half-done in `folder`, where no other may be writing now.

    A folder that had stepped aside for one that never came is put back.
    """
    for path in list(folder.glob(".*.*")):
        if not (left := re.fullmatch(r"\.(.+)\.\d+\.(part|old)", path.name)):
            continue
        target = path.with_name(left[1])
        if left[2] == "old" and not target.exists():
            path.rename(target)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _sync(file: Path) -> None:
    with file.open("rb") as written:
        os.fsync(written.fileno())


def _sync_folder(folder: Path) -> None:
    """Have the disk hold the names in a folder too, where the system can open one, and its disk does that."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network drives
            raise
    finally:
        os.close(handle)


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
