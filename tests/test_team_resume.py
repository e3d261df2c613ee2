"""Two processes that are killed and started again end with the bytes of two that nobody disturbed, in both modes."""

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from patina import checkpoint
from tests.faults import runs
from tests.toolbox import team_of_two

LONGEST = 240
"""Seconds that a team may take on a busy machine; it takes five."""


def train(words: Sequence[str]) -> None:
    with team_of_two(*words) as team:
        for process in team:
            process.join(LONGEST)
        assert [process.exitcode for process in team] == [0, 0], Path("said0", "err").read_text(encoding="utf-8")


def train_until_killed(words: Sequence[str]) -> None:
    """Both are killed once there is a checkpoint: with the first, for the other may hear of it and end by itself."""
    with team_of_two(*words) as team:
        deadline = time.monotonic() + LONGEST
        while checkpoint.newest(runs.FOLDER / "checkpoints") is None and time.monotonic() < deadline:
            time.sleep(0.02)
        for process in team:
            process.kill()
    assert checkpoint.newest(runs.FOLDER / "checkpoints") is not None


@pytest.mark.parametrize("mode", runs.RUNS)
def test_two_processes_killed_and_started_again_end_with_the_same_bytes(mode, tmp_path, monkeypatch) -> None:
    run = runs.RUNS[mode](tmp_path / mode)
    monkeypatch.chdir(run.home)
    words = [word for word in run.words if not word.startswith("preview")]
    train(words)
    whole = runs.outcome()
    runs.FOLDER.rename("whole")
    train_until_killed(words)
    train(words)
    assert runs.outcome() == whole
