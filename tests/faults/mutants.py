"""Breaks what a resume stands on, a piece at a time, and tells which tests see it: `python -m tests.faults.mutants`."""

import os
import sys
from typing import Any, NamedTuple

import pytest
import torch

from patina import checkpoint, files, manifest, resume, session
from patina.conversations import Conversations


class Mutant(NamedTuple):
    """A piece that is not done any more, and the tests that ought to go red."""

    where: object
    name: str
    broken: Any
    tests: tuple[str, ...]


def a_batch_later(self: Conversations, start: int):
    return self.stream.batches(start + 1 if start else 0)


def not_said(*_: object) -> None:
    """Nothing is done."""


MATRIX = "tests/test_resume_matrix.py"
MUTANTS = {
    "optimizer state not saved": Mutant(
        checkpoint, "optimizer_state", lambda optimizer: ({}, {}), (MATRIX, "-k", "texts and adamw")
    ),
    "randomness not tied to the step": Mutant(
        torch, "manual_seed", lambda seed: torch.default_generator, (MATRIX, "-k", "texts and dropout")
    ),
    "data position off by one": Mutant(Conversations, "batches", a_batch_later, (MATRIX, "-k", "texts and rslora")),
    "loss scale not put back": Mutant(resume, "restore_scale", not_said, ("tests/test_resume.py", "-k", "loss_scale")),
    "settings not compared": Mutant(
        session, "compare", lambda path, saved, now: [], ("tests/test_text_run.py", "-k", "other_texts")
    ),
    "folder not renamed into its place": Mutant(
        files, "_put", lambda part, path, old: None, ("tests/test_checkpoint.py", "-k", "comes_back")
    ),
    "digests not compared": Mutant(
        manifest, "compare", not_said, ("tests/test_checkpoint.py", "-k", "walks_back or damage")
    ),
    "killed writers' leftovers not swept": Mutant(
        files.sweep, "__code__", not_said.__code__, ("tests/test_checkpoint.py", "-k", "interrupted or swept")
    ),
    "flush to the disk (fsync) skipped": Mutant(os, "fsync", not_said, ("tests/test_checkpoint.py", MATRIX)),
}


def main() -> None:
    """Tell of each mutant, or of those named."""
    for name in sys.argv[1:] or MUTANTS:
        where, attribute, broken, tests = MUTANTS[name]
        real = getattr(where, attribute)
        setattr(where, attribute, broken)
        try:
            code = pytest.main(["-q", "-x", "--tb=line", "--assert=plain", "-p", "no:cacheprovider", *tests])
        finally:
            setattr(where, attribute, real)
        sys.stdout.write(f"MUTANT {name}: {'seen' if code == 1 else f'not seen ({code})'} by {' '.join(tests)}\n")


if __name__ == "__main__":
    main()
