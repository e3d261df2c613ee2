"""Every operation on a file may fail: then a run goes on or ends with a sentence, and a resume loses nothing."""

import os
import random
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from patina import checkpoint
from tests.faults import plan, runs

SAMPLE = {"texts": 2, "pictures": 1}
"""Operations that each kind of fault is put at in `make test`."""
PARTS = 4
"""Each kind of fault comes in so many tests, for as many processes to take."""
NAMED = re.compile(r"(?<=cache/)[0-9a-f]+|(?<=\.lora-)\w+|[0-9a-f]{16,}|\d+")
"""What is another in the name of each file of a kind."""
SPEAKING = ("metrics.jsonl", "logs", "samples", "small.png", "report.html")
"""Where a failure to write is told of and never stops a run."""


class Whole(NamedTuple):
    """An undisturbed run."""

    run: runs.Run
    outcome: dict[str, Any]
    operations: list[str]
    outside: list[int]
    """Sizes of the files that Python does not write."""


class Ended(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="module", params=runs.RUNS)
def whole(request, tmp_path_factory):
    run = runs.RUNS[request.param](tmp_path_factory.mktemp("faults") / request.param)
    before = Path.cwd()
    os.chdir(run.home)
    for _ in range(2):  # the first makes the folders above
        shutil.rmtree(runs.FOLDER, ignore_errors=True)
        ended, operations = under(run, 0, "")
        assert ended.code == 0, ended.err
    yield Whole(run, runs.outcome(), operations, written_outside_python())
    os.chdir(before)


def under(run: runs.Run, at: int, kind: str, limit: int | None = None) -> tuple[Ended, list[str]]:
    """The run with this fault, and the operations that it came to; files may have `limit` bytes."""
    with tempfile.TemporaryDirectory() as said:
        log = Path(said, "log")
        process = plan.started(plan.Plan(str(Path(run.home, runs.FOLDER)), str(log), at, kind), run.words, said, limit)
        process.join()
        out, err = (Path(said, name).read_text(encoding="utf-8") for name in ("out", "err"))
        assert process.exitcode is not None
        return Ended(process.exitcode, out, err), log.read_text().splitlines()


def check(whole: Whole, at: int, kind: str) -> None:
    """Train anew with the fault, then without it."""
    shutil.rmtree(runs.FOLDER)
    ended, operations = under(whole.run, at, kind)
    met = operations[at - 1]
    where = f"{kind} at {at}, {met}: {ended}"
    assert ended.code in ((-9,) if kind == "kill" else (0, 2)), where
    told = met.partition(" ")[2].lstrip(".").startswith(SPEAKING)
    if kind == "short" or (told and kind in plan.ERRORS):
        assert ended.code == 0, where
    if kind == "gone":
        back()
    if told and kind in plan.ERRORS:
        assert ended.out.count("training goes on") + ended.out.count("no picture was put") <= 1, where
    goes_on(whole, ended, where, again=ended.code != 0 or kind == "gone")


def goes_on(whole: Whole, ended: Ended, where: str, *, again: bool = True) -> None:
    """It ended with a sentence, if it did, left only whole checkpoints, and comes to the undisturbed run's end."""
    assert "Traceback" not in ended.err, where
    if ended.code == 2:
        (sentence,) = [line for line in ended.err.splitlines() if not line.startswith("step ")]
        assert sentence.endswith("choose another folder"), where
    for path in Path(runs.FOLDER, "checkpoints").glob("step-*"):
        checkpoint.load(path)
    if again:
        then, _ = under(whole.run, 0, "")
        assert then.code == 0, f"{where}, then {then}"
    assert runs.outcome() == whole.outcome, where


def back() -> None:
    """The disk that was gone is there again."""
    aside = runs.FOLDER.with_name(runs.FOLDER.name + plan.ASIDE)
    if aside.is_dir():
        shutil.rmtree(runs.FOLDER)
        aside.rename(runs.FOLDER)


def written_outside_python() -> list[int]:
    """Sizes of the files that the libraries' Rust writes, which no plan sees."""
    names = ("*.safetensors", "tokenizer.json")
    return sorted({path.stat().st_size for name in names for path in runs.FOLDER.rglob(name)})


@pytest.mark.parametrize("kind", plan.KINDS)
def test_a_sample_of_faults(whole, kind) -> None:
    chosen = random.Random(kind)
    for at in chosen.sample(range(1, len(whole.operations) + 1), SAMPLE[whole.run.home.name]):
        check(whole, at, kind)


def test_files_that_are_not_written_by_python_fail_alike(whole) -> None:
    """The system's limit on the size of files is a full disk to every writer: one byte too few for each in turn."""
    for size in whole.outside:
        shutil.rmtree(runs.FOLDER)
        ended, _ = under(whole.run, 0, "", limit=size - 1)
        assert ended.code == 2, ended
        goes_on(whole, ended, f"limit {size - 1}: {ended}")


@pytest.mark.faults
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("kind", plan.KINDS)
def test_every_operation(whole, kind, part, capsys) -> None:
    chosen = one_of_each(whole.operations, kind)[part::PARTS]
    for at in chosen:
        check(whole, at, kind)
    with capsys.disabled():
        told = f"{kind} at {len(chosen)}, of {len(whole.operations)} that there are, part {part + 1} of {PARTS}"
        sys.stdout.write(f"\n{whole.run.home.name}: {told}\n")


def one_of_each(operations: list[str], kind: str) -> list[int]:
    """The place of one operation of each sort, another for each kind of fault.

    Those are of one sort that do the same to files whose names differ by numbers, digests or random letters alone.
    """
    places, sorts = list(range(1, len(operations) + 1)), set[str]()
    random.Random(kind).shuffle(places)
    return [at for at in places if (sort := NAMED.sub("#", operations[at - 1])) not in sorts and not sorts.add(sort)]


def test_operations_are_sorted_by_what_they_do_to_which_kind_of_file() -> None:
    alike = ["open cache/0f", "open cache/a1", "open .lora-ab_12xyz", "open .lora-zzzzzzzz", "open logs", "mkdir logs"]
    assert len(one_of_each(alike, "EIO")) == 4
