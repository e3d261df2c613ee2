"""What a process does to files under a folder, counted, and the one operation that is to fail or to be its last."""

import builtins
import errno
import io
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from tests import toolbox

ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EACCES": errno.EACCES}
KINDS = (*ERRORS, "full", "short", "kill", "gone")
"""`full`: from that operation on nothing can be written; `short`: a write takes half; `kill`: SIGKILL before it;
`gone`: before it the root is moved aside, and an empty folder is in its place, as where a disk was mounted."""
ASIDE = ".aside"
"""Behind the root's name, where it is then."""
BY_PATH = ("mkdir", "replace", "rename", "unlink", "open")
"""Functions of `os` whose first argument is a path."""
FREEING = ("unlink",)
"""Work on a full disk too."""


@dataclass
class Plan:
    """The `at`-th operation, from 1, on a path under `root` meets `kind`; 0: none does. All are noted in `log`."""

    root: str
    log: str
    at: int = 0
    kind: str = ""
    seen: int = 0

    def meet(self, name: str, path: str | None) -> bool:
        """Count an operation; raises OSError, or returns whether a write is to be short."""
        if path is None or not self.holds(path):
            return False
        self.seen += 1
        os.write(self._log, f"{name} {os.path.relpath(path, self.root)}\n".encode())
        later = self.kind == "full" and self.at and self.seen > self.at and name not in FREEING
        if self.seen != self.at and not later:
            return False
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "gone":
            self.vanish()
            return False
        if self.kind == "short":
            return name == "write"
        number = ERRORS.get(self.kind, errno.ENOSPC)
        raise OSError(number, os.strerror(number), *([] if name in ("write", "fsync") else [path]))

    def vanish(self) -> None:
        """Have what is in the root no longer be there."""
        if os.path.isdir(self.root):
            self._rename(self.root, self.root + ASIDE)
            self._mkdir(self.root)

    def holds(self, path: str) -> bool:
        """Whether it is the root, or under it."""
        return (os.path.realpath(path) + os.sep).startswith(self.root + os.sep)

    def lay(self) -> None:
        """Put the plan under this process's own file operations."""
        self._log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self._rename, self._mkdir = os.rename, os.mkdir
        for name in BY_PATH:
            setattr(os, name, self._by_path(name, getattr(os, name)))
        os.fsync = self._fsync(os.fsync)
        io.open = builtins.open = self._open(io.open)

    def _by_path(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def called(path, *args, **named):
            if named.get("dir_fd") is None:
                self.meet(name, os.fspath(path) if isinstance(path, str | os.PathLike) else None)
            return real(path, *args, **named)

        return called

    def _fsync(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def called(number: int) -> None:
            self.meet("fsync", os.readlink(f"/proc/self/fd/{number}"))
            real(number)

        return called

    def _open(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def called(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, *rest):
            path = os.path.realpath(file) if isinstance(file, str | os.PathLike) else ""
            if not set(mode) & set("wax+") or not self.holds(path):
                return real(file, mode, buffering, encoding, errors, newline, *rest)
            self.meet("create", path)
            raw = Raw(self, path, mode.replace("b", "").replace("t", ""))
            if buffering == 0:
                return raw
            layered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return layered if "b" in mode else io.TextIOWrapper(layered, encoding, errors, newline)

        return called


class Raw(io.FileIO):
    """A file whose every write the plan sees."""

    def __init__(self, plan: Plan, path: str, mode: str) -> None:
        super().__init__(path, mode)
        self.plan, self.path = plan, path

    def write(self, data) -> int:
        """As the system's write, which may take less than it was given."""
        view = memoryview(data).cast("B")
        short = self.plan.meet("write", self.path) and len(view) > 1
        return super().write(view[: len(view) // 2] if short else view)


def started(plan: Plan, words: Sequence[str], said: str, limit: int | None) -> ForkServerProcess:
    """`python train.py WORDS` in a process under the plan; see `toolbox.started`."""
    Path(said, "in").touch()
    process = toolbox.SERVER.Process(target=_play, args=(plan, tuple(words), os.getcwd(), said, limit))
    process.start()
    return process


def _play(plan: Plan, words: tuple[str, ...], cwd: str, said: str, limit: int | None) -> None:
    plan.lay()
    toolbox.play(toolbox.TRAIN, words, cwd, said, limit, dict(os.environ))
