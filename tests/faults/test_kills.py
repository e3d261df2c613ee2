"""A run killed at random instants, again and again, ends with what it would have ended with undisturbed."""

import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from patina import checkpoint
from tests import toolbox
from tests.faults import runs


class Whole(NamedTuple):
    """An undisturbed run."""

    run: runs.Run
    outcome: dict[str, Any]
    seconds: float


@pytest.fixture(scope="module", params=runs.RUNS)
def whole(request, tmp_path_factory):
    run = runs.RUNS[request.param](tmp_path_factory.mktemp("kills") / request.param)
    before = Path.cwd()
    os.chdir(run.home)
    for _ in range(2):  # the first starts the server
        shutil.rmtree(runs.FOLDER, ignore_errors=True)
        began = time.monotonic()
        assert killed_after(run, None) == 0
    yield Whole(run, runs.outcome(), time.monotonic() - began)
    os.chdir(before)


def killed_after(run: runs.Run, seconds: float | None) -> int:
    """The exit code of the run, -9 where it was killed; None: it may go on to its end."""
    with tempfile.TemporaryDirectory() as said:
        Path(said, "in").touch()
        process = toolbox.started(toolbox.TRAIN, *run.words, said=said)
        process.join(seconds)
        process.kill()
        process.join()
        assert process.exitcode in (0, -9), Path(said, "err").read_text(encoding="utf-8")
        return process.exitcode


def phase() -> str:
    """Where the run of the working directory was killed, by what it left."""
    left = {path.name for path in runs.FOLDER.rglob(".*.part")}
    named = {".step-": "in a save", ".small": "in an export", ".lora-": "in an export"}
    if found := [words for start, words in named.items() if any(name.startswith(start) for name in left)]:
        return found[0]
    if not (runs.FOLDER / "metrics.jsonl").is_file():
        return "building the cache" if (runs.FOLDER / "cache").is_dir() else "starting"
    at = checkpoint.newest(runs.FOLDER / "checkpoints")
    return "in the steps" if at is None else f"after {at.name}"


def torment(whole: Whole, kills: int, seed: int) -> Counter[str]:
    """Kill `kills` times; each time that the run came to its end nonetheless, compare, and begin anew."""
    instants, fallen, ends = random.Random(seed), Counter[str](), 0
    shutil.rmtree(runs.FOLDER)
    while fallen.total() < kills:
        if killed_after(whole.run, instants.uniform(0, whole.seconds)) == 0:
            ends += 1
            assert runs.outcome() == whole.outcome
            shutil.rmtree(runs.FOLDER)
        else:
            fallen[phase()] += 1
            clear()
    assert killed_after(whole.run, None) == 0
    assert runs.outcome() == whole.outcome
    assert not list((runs.FOLDER / "checkpoints").glob(".*"))
    return fallen + Counter({"(ends reached and compared)": ends + 1})


def clear() -> None:
    """So that the next kill's phase is its own."""
    for path in runs.FOLDER.glob(".small*.part"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def tell(whole: Whole, fallen: Counter[str], capsys) -> None:
    with capsys.disabled():
        sys.stdout.write(f"\n{whole.run.home.name}, killed: {dict(fallen.most_common())}\n")


def test_ten_kills_lose_nothing(whole, capsys) -> None:
    tell(whole, torment(whole, kills=10, seed=1), capsys)


@pytest.mark.faults
def test_a_hundred_kills_lose_nothing(whole, capsys) -> None:
    tell(whole, torment(whole, kills=100, seed=2), capsys)
