"""Several processes that label one folder write the table that one writes, and lose nothing when they are killed."""

import os
import socket
import time
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
from tiny_captioner import picture, save_tiny_captioner

from patina.caption.journal import journal_of, journals
from tests.toolbox import TOOLS, command, started

TOOL = TOOLS / "auto_label.py"
COUNT = 9
LONGEST = 120
"""Seconds that a crew may take; it takes five."""


@pytest.fixture
def words(tmp_path, monkeypatch) -> Sequence[str]:
    """The command line for a folder of pictures, one of which is none."""
    monkeypatch.chdir(tmp_path)
    model = save_tiny_captioner(tmp_path / "captioner")
    Path("in").mkdir()
    for number in range(COUNT):
        picture(number).save(f"in/{number}.png")
    Path("in/5.png").write_bytes(b"no picture")
    return ("--input", "in", "--model", str(model), "--batch-size", "1", "--trigger", "ptna", "--device", "cpu")


def crew(words: Sequence[str], size: int) -> list[ForkServerProcess]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    members = []
    for rank in map(str, range(size)):
        said = Path(f"said{rank}")
        said.mkdir(exist_ok=True)
        (said / "in").touch()
        env = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
        env |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
        members.append(started(TOOL, *words, "--output", "crew.csv", said=str(said), env=env))
    return members


def joined(members: list[ForkServerProcess]) -> list[int | None]:
    for member in members:
        member.join(LONGEST)
    return [member.exitcode for member in members]


def test_three_write_what_one_writes_and_the_first_speaks_for_all(words) -> None:
    assert joined(crew(words, 3)) == [1, 0, 0], Path("said0/err").read_text()
    assert command(TOOL, *words, "--output", "alone.csv").returncode == 1
    assert Path("crew.csv").read_bytes() == Path("alone.csv").read_bytes()
    assert f"{COUNT - 1} new captions" in Path("said0/out").read_text()
    assert Path("said0/err").read_text().count("5.png") == 1
    assert Path("said1/out").read_text() == Path("said2/out").read_text() == ""
    assert not [name for name in os.listdir() if "journal" in name]


def test_what_a_killed_crew_had_captioned_is_kept_whoever_goes_on(words) -> None:
    home = Path(".crew.csv.journal")
    members = crew(words, 2)
    deadline = time.monotonic() + LONGEST
    while time.monotonic() < deadline and not (lines(journal_of(home, 1)) > 1 and lines(home) > 1):
        time.sleep(0.01)
    for member in members:
        member.kill()
    joined(members)
    kept = sum(lines(path) - 1 for path in journals(home))
    assert kept > 0
    ended = command(TOOL, *words, "--output", "crew.csv")
    assert ended.returncode == 1
    assert f"{COUNT - 1 - kept} new captions" in ended.stdout
    assert command(TOOL, *words, "--output", "alone.csv").returncode == 1
    assert Path("crew.csv").read_bytes() == Path("alone.csv").read_bytes()
    assert not journals(home)


def lines(path: Path) -> int:
    """Complete ones."""
    return path.read_text(encoding="utf-8").count("\n") if path.exists() else 0
