"""One run at a time in an output folder: a lock that the kernel lets go when the process is gone, however it went."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from patina.errors import PatinaError

NAME, FIRST = ".lock", "config.yaml"
"""What every run's folder holds from the beginning."""
TAKEN = (errno.EAGAIN, errno.EACCES)
NOT_KEPT = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a file system says that keeps no locks, as some that are shared over a network: runs go on without."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of an output folder. Raises PatinaError where one is under way.

    The file stays, empty: who removed it could remove it from under a run that has just locked it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / NAME).open("ab") as file:
        try:
            _lock(file)
        except OSError as error:
            if error.errno in TAKEN:
                raise PatinaError(
                    f"output_dir: another run is under way in {folder}; wait for its end, or write another output_dir"
                ) from error
            if error.errno not in NOT_KEPT:
                raise
        yield


@contextmanager
def kept(folder: Path) -> Iterator[None]:
    """Inside, a file that cannot be read or written may mean that all of `folder` is gone; see `require_kept`."""
    try:
        yield
    except (OSError, ValueError):
        require_kept(folder)
        raise


def require_kept(folder: Path) -> None:
    """Raise PatinaError where `folder` is not the one that was locked and written to: its disk is gone.

    What is then found in its place, the empty folder that a disk was mounted on, would take what is saved, and hide it
    when the disk is back.
    """
    if not ((folder / NAME).exists() or (folder / FIRST).exists()):
        raise PatinaError(
            f"output_dir: what this run has written is no longer in {folder}, so nothing more is saved there; "
            "have its disk back and go on with resume=auto, or choose another folder"
        )


if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[bytes]) -> None:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
