"""A file that is only added to: what the disk refuses is told of once, kept, and tried again with the next part."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Self

from patina.files import replacing
from patina.watch.console import say


class Tail:
    """Each part is with the system as soon as it is added, in order and never torn.

    A curve is not worth a run: no failure to write stops it.
    """

    def __init__(self, path: Path, head: bytes = b"") -> None:
        """`head` is what the file begins with, in place of whatever is there."""
        self.path, self._head = path, head
        self._waiting = bytearray()
        self._told = False
        self._file = None
        self.add(b"")

    def add(self, part: bytes) -> None:
        """Write all that waits, this part last."""
        self._waiting += part
        try:
            self._write()
        except OSError as error:
            if not self._told:
                say(f"{self.path}: not written ({error.strerror}); training goes on, and each step tries again")
            self._told = True

    def settle(self) -> None:
        """Have the disk hold what was added, so that a checkpoint is never ahead of it."""
        self.add(b"")
        if self._file and not self._waiting:
            with suppress(OSError):  # the system has the data all the same
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Nothing more will be written."""
        self.add(b"")
        if self._file:
            self._file.close()

    def _write(self) -> None:
        if self._file is None:
            with replacing(self.path) as part:
                part.write_bytes(self._head)
            self._file = self.path.open("ab", buffering=0)
        while self._waiting:
            written = self._file.write(self._waiting)
            del self._waiting[:written]


class Tailed:
    """What puts its parts into one file that is only added to; a context manager."""

    _tail: Tail

    def settle(self) -> None:
        """Have the disk hold all of it so far."""
        self._tail.settle()

    def close(self) -> None:
        """Nothing more will be written."""
        self._tail.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
