"""The loop tells of every step once, in order, however late its numbers come."""

from itertools import repeat

import pytest
from accelerate import Accelerator
from torch import nn

from patina.errors import PatinaError
from patina.loop import Plan, train


class Late:
    """A step's outcome that arrives when the step after it has been begun, as from a GPU."""

    def __init__(self, steps: "Slow", number: int) -> None:
        self.steps, self.number, self.waited = steps, number, False

    def ready(self) -> bool:
        return self.steps.begun > self.number

    def read(self) -> tuple[float, float]:
        self.waited = not self.ready()
        return float(self.number), 1.0


class Slow:
    """Takes steps whose outcomes are late; the one numbered `torn` is interrupted."""

    def __init__(self, torn: int = 0) -> None:
        self.begun, self.torn, self.outcomes = 0, torn, []

    def add(self, batch, terms: int) -> None:
        if self.begun + 1 == self.torn:
            raise KeyboardInterrupt

    def update(self, rates) -> Late:
        self.begun += 1
        self.outcomes.append(Late(self, self.begun))
        return self.outcomes[-1]


class Counting(nn.Module):
    def count(self, batch) -> int:
        return 1

    def prepare(self, batch):
        return batch

    def adapted(self):
        return {}


def taken(steps: Slow, pause=lambda step: False, batches=None, stop=lambda: False) -> list[tuple[int, int, float]]:
    """Each step that was told of, how many were begun by then, and its loss."""
    told = []
    plan = Plan(5, 1, 5, {"net": 1e-3}, lambda step: 1.0)
    try:
        reached = train(
            Counting(),
            batches or repeat({}),
            steps,
            plan,
            Accelerator(cpu=True),
            on_step=lambda progress: told.append((progress.step, steps.begun, progress.loss)),
            pause=pause,
            stop=stop,
        )
        assert reached == steps.begun
    except KeyboardInterrupt:
        told.append(("interrupted", steps.begun, 0.0))
    return told


def test_steps_are_told_of_when_the_next_is_under_way_and_the_last_at_the_end() -> None:
    steps = Slow()
    assert taken(steps) == [(1, 2, 1.0), (2, 3, 2.0), (3, 4, 3.0), (4, 5, 4.0), (5, 5, 5.0)]
    assert [outcome.waited for outcome in steps.outcomes] == [False, False, False, False, True]


def test_at_a_pause_the_weights_are_still_that_steps() -> None:
    assert [row[:2] for row in taken(Slow(), lambda step: step == 2)] == [(1, 2), (2, 2), (3, 4), (4, 5), (5, 5)]


def test_a_wish_to_stop_ends_it_after_the_step_under_way_with_every_step_told() -> None:
    steps = Slow()
    assert [row[:2] for row in taken(steps, stop=lambda: steps.begun == 3)] == [(1, 2), (2, 3), (3, 3)]


def test_an_interrupt_loses_no_step_that_was_taken() -> None:
    assert [row[0] for row in taken(Slow(torn=4))] == [1, 2, 3, "interrupted"]


def test_data_that_ends_early_is_a_sentence() -> None:
    with pytest.raises(PatinaError, match="step 3: the data ended"):
        taken(Slow(), batches=iter([{}, {}]))
