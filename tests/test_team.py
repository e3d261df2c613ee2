"""Two processes, as a launcher starts them, train as one does, write everything once, and none outlives the other."""

import json
import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
from safetensors.torch import load_file

from patina import checkpoint
from tests.test_run import SMALL, pictures
from tests.tiny import save_sd15
from tests.toolbox import team_of_two, train_command

LONGEST = 120
"""Seconds that a team may take; it takes five."""


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    pictures(tmp_path / "pictures")
    save_sd15(tmp_path / "base")
    (tmp_path / "run.yaml").write_text(SMALL + "optimizer: adamw\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def team(place) -> Iterator[list[ForkServerProcess]]:
    with team_of_two("--config", "run.yaml", "output_dir=two", "output_name=one") as processes:
        yield processes


def said(number: int, where: str) -> str:
    return Path(f"said{number}", where).read_text(encoding="utf-8")


def steps(folder: str) -> list[dict]:
    return [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]


def test_two_processes_train_what_one_does_and_write_it_once(team) -> None:
    for process in team:
        process.join(LONGEST)
    assert [process.exitcode for process in team] == [0, 0], said(0, "err") + said(1, "err")
    words = ("--config", "run.yaml", "output_dir=one", "gradient_accumulation_steps=2")
    assert train_command(*words).returncode == 0
    ours, theirs = load_file("two/one.safetensors"), load_file("one/one.safetensors")
    assert ours.keys() == theirs.keys()
    for key, weight in theirs.items():
        assert (ours[key] - weight).norm() <= 1e-6 * weight.norm(), key
    for mine, its in zip(steps("two"), steps("one"), strict=True):
        assert mine["step"] == its["step"]
        assert mine["loss"] == pytest.approx(its["loss"], rel=1e-6)
        assert mine["grad_norm"] == pytest.approx(its["grad_norm"], rel=1e-6)
    assert len(list(Path("two/logs").rglob("events*"))) == len(list(Path("one/logs").rglob("events*")))
    assert "on each of 2 processes" in said(0, "out")
    assert said(1, "out") == said(1, "err") == ""


def test_what_two_processes_saved_one_goes_on_with(team) -> None:
    for process in team:
        process.join(LONGEST)
    words = ("--config", "run.yaml", "output_dir=two", "output_name=one", "resume=auto", "max_steps=8")
    refused = train_command(*words)
    assert refused.returncode == 2
    assert "gradient_accumulation_steps was 2 and is 1" in refused.stderr
    assert train_command(*words, "gradient_accumulation_steps=2").returncode == 0
    assert [line["step"] for line in steps("two")] == list(range(1, 9))


@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_is_killed_the_other_ends_with_a_sentence(team, victim) -> None:
    deadline = time.monotonic() + LONGEST
    while checkpoint.newest(Path("two/checkpoints")) is None and time.monotonic() < deadline:
        time.sleep(0.02)
    team[victim].kill()
    team[1 - victim].join(LONGEST)
    if team[1 - victim].exitcode != 0:  # zero where it had taken its last step
        assert team[1 - victim].exitcode == 2
        assert "another process of this run has ended" in said(1 - victim, "err")
        assert "Traceback" not in said(1 - victim, "err")
    words = ("--config", "run.yaml", "output_dir=two", "output_name=one", "resume=auto")
    assert train_command(*words, "gradient_accumulation_steps=2").returncode == 0
    assert [line["step"] for line in steps("two")] == list(range(1, 7))
