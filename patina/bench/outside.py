"""A job as its user sees it: started as a process, timed by the clock on the wall, and ended at its limit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

Lines = list[tuple[float, Mapping[str, Any]]]
POLL = 0.002
"""Seconds between two looks at what a job has written: how exactly a step's end is known."""


@dataclass(frozen=True)
class Watched:
    """What one job did."""

    code: int | None
    """Its exit code; None where it was ended at its limit."""
    seconds: float
    """From its start to its end."""
    memory: int
    """Peak of its main memory in bytes, files that it mapped included."""
    lines: Lines
    """What it wrote of each step, with when that was there to be read, in seconds after its start."""
    says: str
    """Its last words."""


def watch(
    command: Sequence[str], metrics: Path | None, log: Path, limit: float, env: Mapping[str, str], cwd: Path
) -> Watched:
    """Run the command, its output going to `log`, and follow the JSON lines that it adds to `metrics`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=output, stderr=output, env=env, cwd=cwd, start_new_session=True)
        try:
            code, memory, lines = _follow(process, metrics, began, limit)
        finally:
            _end(process)
    words = log.read_text(encoding="utf-8", errors="replace").split("\n")
    says = next((line.strip() for line in reversed(words) if line.strip()), "")
    return Watched(code, time.monotonic() - began, memory, lines, says)


def _follow(
    process: subprocess.Popen[bytes], metrics: Path | None, began: float, limit: float
) -> tuple[int | None, int, Lines]:
    lines: Lines = []
    tail = _Tail(metrics)
    while True:
        # not Popen.poll(): of a child that it has reaped the memory can no longer be told
        done, status, usage = os.wait4(process.pid, os.WNOHANG)
        now = time.monotonic() - began
        lines += [(now, json.loads(line)) for line in tail.fresh()]
        if done:
            process.returncode = os.waitstatus_to_exitcode(status)
            tail.close()
            return process.returncode, usage.ru_maxrss * 1024, lines
        if now > limit:
            tail.close()
            return None, 0, lines
        time.sleep(POLL)


class _Tail:
    """The whole lines that a growing file has since the last look; none before it is there."""

    def __init__(self, path: Path | None) -> None:
        self._path, self._rest = path, b""
        self._file: BinaryIO | None = None

    def fresh(self) -> list[bytes]:
        if self._file is None and self._path and self._path.is_file():
            self._file = self._path.open("rb")
        if self._file is None:
            return []
        *whole, self._rest = (self._rest + self._file.read()).split(b"\n")
        return whole

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill it, with all that it started, if it is still there."""
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
