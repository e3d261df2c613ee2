"""Two processes that are killed and started again end with the bytes of two that nobody disturbed, in both modes."""

import socket
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from patina import checkpoint
from tests.faults import runs
from tests.toolbox import TRAIN, started

LONGEST = 240
"""Seconds that a team may take on a busy machine; it takes five."""


def team(words: Sequence[str], kill: bool = False) -> None:
    """Train with two processes, as a launcher starts them; `kill`: both, once there is a checkpoint."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    processes = []
    for number in map(str, range(2)):
        Path(f"said{number}").mkdir(exist_ok=True)
        Path(f"said{number}", "in").touch()
        env = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        env |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
        processes.append(started(TRAIN, *words, said=f"said{number}", env=env))
    deadline = time.monotonic() + LONGEST
    while kill and checkpoint.newest(runs.FOLDER / "checkpoints") is None and time.monotonic() < deadline:
        time.sleep(0.02)
    for process in processes:
        if kill:
            process.kill()
        process.join(LONGEST)
    codes = [process.exitcode for process in processes]
    assert codes in ([[-9, -9], [0, 0]] if kill else [[0, 0]]), Path("said0", "err").read_text(encoding="utf-8")


@pytest.mark.parametrize("mode", runs.RUNS)
def test_two_processes_killed_and_started_again_end_with_the_same_bytes(mode, tmp_path, monkeypatch) -> None:
    run = runs.RUNS[mode](tmp_path / mode)
    monkeypatch.chdir(run.home)
    words = [word for word in run.words if not word.startswith("preview")]
    team(words)
    whole = runs.outcome()
    runs.FOLDER.rename("whole")
    team(words, kill=True)
    team(words)
    assert runs.outcome() == whole
