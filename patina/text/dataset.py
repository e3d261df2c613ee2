"""The training set of text mode: rows read, written by the template, measured, and cut where they are too long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from patina.errors import PatinaError
from patina.text.rows import Row
from patina.text.template import Encoded, Template

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LONGEST = 2048
"""Tokens of a row where the config does not say, and the model can see that many."""


class Cut(NamedTuple):
    """What `max_length` did to a set."""

    rows: int
    """How many were cut."""
    longest: int
    """Tokens of the longest row before."""
    empty: int
    """How many of the set were left out: nothing of theirs would be trained."""


@dataclass(frozen=True)
class Rows:
    """A set ready to be trained on."""

    encoded: list[Encoded]
    max_length: int
    cut: Cut
    lengths: Sequence[int]
    """Tokens of every row of the set, before it was cut."""

    @property
    def tokens(self) -> int:
        """All tokens of the set."""
        return sum(len(row.ids) for row in self.encoded)

    @property
    def trained(self) -> int:
        """Those that the model learns to say."""
        return sum(int(row.trained.sum()) for row in self.encoded)

    def report(self) -> list[str]:
        """What a user should know of the set before it is trained on."""
        lengths = sorted(len(row.ids) for row in self.encoded)
        middle, long = (lengths[int(share * (len(lengths) - 1))] for share in (0.5, 0.95))
        lines = [
            f"{len(lengths):,} rows, {self.tokens:,} tokens, {self.trained:,} of them trained; "
            f"half of the rows have {middle} or fewer, 95 % {long}"
        ]
        if self.cut.rows:
            lines.append(
                f"{self.cut.rows} rows are longer than max_length: {self.max_length} and are cut there; "
                f"to keep all of the longest, write max_length: {self.cut.longest}"
            )
        if self.cut.empty:
            lines.append(f"{self.cut.empty} rows are left out: they have no answer to learn, or it is cut off")
        return lines


def encode_rows(
    rows: Sequence[Row], template: Template, max_length: int, everything: bool = False, name: str = "train_data"
) -> Rows:
    """Write and cut the rows; `name` is what messages call the set. Raises PatinaError where nothing is trained."""
    whole = template.encode(rows, everything)
    cut = [Encoded(row.ids[:max_length], row.trained[:max_length]) for row in whole]
    kept = [row for row in cut if row.trained.any()]
    lengths = [len(row.ids) for row in whole]
    if not kept:
        raise PatinaError(
            f"{name}: none of its {len(rows)} rows has an answer within max_length: {max_length}; give rows with "
            f"answers, or write a larger max_length (the longest row has {max(lengths, default=0)} tokens)"
        )
    found = Cut(sum(length > max_length for length in lengths), max(lengths), len(whole) - len(kept))
    return Rows(kept, max_length, found, lengths)


def limit(model: PreTrainedModel, wanted: int | None) -> int:
    """Tokens of a row: `wanted`, or else LONGEST, or the model's own limit where that is less.

    Raises PatinaError when more are wanted than the model has positions.
    """
    positions = sight(model)
    if wanted is not None and wanted > positions:
        raise PatinaError(
            f"max_length: {wanted} is more than the {positions} tokens that this model can see; "
            f"write max_length: {positions}"
        )
    return wanted or min(LONGEST, positions)


def sight(model: PreTrainedModel) -> int:
    """Tokens that a model can see; LONGEST where its config does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or LONGEST
