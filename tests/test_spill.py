"""A driver that spills memory is told by numbers alone: the last steps' seconds, and what is free on the card."""

import pytest

from patina.engine.spill import Spill, full, slow


@pytest.mark.parametrize(
    ("before", "seconds", "is_slow"),
    [
        ([0.1] * 20, 0.51, True),
        ([0.1] * 20, 0.49, False),
        ([0.1] * 19, 60.0, False),
        ([0.1] * 15 + [2.0] * 5, 0.51, True),  # the median does not heed a few slow ones
        ([2.0] * 15 + [0.1] * 5, 0.51, False),
    ],
)
def test_slow_is_five_times_the_median_of_twenty_or_more(before, seconds, is_slow) -> None:
    assert slow(before, seconds) == is_slow


def test_full_is_above_95_percent() -> None:
    assert full(49, 1000)
    assert not full(50, 1000)


def noted(card: tuple[int, int], seconds: list[float]) -> tuple[list[str], int]:
    """What is said, and how often the card is asked."""
    said, asked = [], []

    def ask() -> tuple[int, int]:
        asked.append(1)
        return card

    spill = Spill(ask, said.append)
    for step in seconds:
        spill.note(step)
    return said, len(asked)


def test_it_is_said_once_and_the_card_is_asked_only_when_a_step_is_slow() -> None:
    said, asked = noted((1, 100), [0.1] * 25 + [3.0] * 5)
    assert asked == len(said) == 1
    assert "a step took 3 s where 0.1 s is usual" in said[0]
    assert noted((1, 100), [0.1] * 25) == ([], 0)
    assert noted((50, 100), [0.1] * 25 + [3.0] * 5) == ([], 5)


def test_a_run_that_has_become_slower_for_good_is_no_longer_surprising() -> None:
    assert noted((50, 100), [0.1] * 100 + [3.0] * 100)[1] == 50
