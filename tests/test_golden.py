"""The numbers that every family trained with when they were last written down; a refactor moves none."""

import json

import golden
import pytest

from patina.families import FAMILIES

TOLERANCE = 1e-5
"""Relative: another machine's libraries sum in another order, which six steps make no larger than this."""


@pytest.mark.parametrize("name", FAMILIES)
def test_losses_and_gradient_norms_have_not_moved(name) -> None:
    written = json.loads((golden.FOLDER / f"{name}.json").read_text())
    measured = golden.measure(name)
    assert measured.keys() == written.keys()
    for what, numbers in measured.items():
        assert numbers == pytest.approx(written[what], rel=TOLERANCE), what
