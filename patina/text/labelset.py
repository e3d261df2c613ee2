"""Labelled texts as a model sees them: the labels' numbers, the texts' tokens, and the batches of both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from patina.errors import PatinaError
from patina.task import Batch
from patina.text.pack import Stream
from patina.text.rows import Row
from patina.text.template import Encoded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KEPT = ("input_ids", "attention_mask", "tokens", "epoch", "names", "places")
"""What of a batch of texts has a meaning where no token is predicted."""
SHOWN = 12
"""Labels that a line names."""


def labels_of(rows: Sequence[Row], wanted: Sequence[str]) -> tuple[str, ...]:
    """The labels by number: as `wanted`, or else those of the rows, whole numbers by size and words by letters.

    Raises PatinaError where there are fewer than two, or a row has none of the wanted.
    """
    found = {row.label for row in rows}
    if wanted:
        refuse_others(rows, wanted, "text.labels", "correct it, or add it there")
        return tuple(wanted)
    if len(found) < 2:
        raise PatinaError(
            f"train_data: every row has the label {', '.join(found)}, and to tell labels apart takes two; give rows "
            "of another"
        )
    numbers = all(label.removeprefix("-").isdecimal() for label in found)
    return tuple(sorted(found, key=lambda label: (int(label) if numbers else 0, label)))


def refuse_others(rows: Sequence[Row], labels: Sequence[str], where: str, remedy: str) -> None:
    """Raises PatinaError where a row has a label that is not among these, naming its place."""
    unknown = [row for row in rows if row.label not in labels]
    if unknown:
        more = f" (and {len(unknown) - 1} rows more)" if len(unknown) > 1 else ""
        raise PatinaError(
            f"{unknown[0].place}: the label {unknown[0].label!r} is not in {where} ({_some(labels)}){more}; {remedy}"
        )


@dataclass(frozen=True)
class LabelSet:
    """A set ready to be trained or measured on."""

    labels: tuple[str, ...]
    """By number."""
    encoded: list[Encoded]
    """The texts, with the tokens that the model wants around them; none of them is predicted."""
    classes: Tensor
    """[rows] int64, each text's label."""
    max_length: int
    cut: int
    """How many texts were cut at `max_length`."""

    @property
    def tokens(self) -> int:
        """All tokens of the set."""
        return sum(len(row.ids) for row in self.encoded)

    def report(self) -> list[str]:
        """What a user should know of the set before it is trained on."""
        counts = Counter(self.classes.tolist())
        shares = _some([f"{label} {counts[at]:,}" for at, label in enumerate(self.labels)])
        lines = [f"{len(self.encoded):,} rows, {self.tokens:,} tokens", f"{len(self.labels)} labels: {shares}"]
        if self.cut:
            lines.append(f"{self.cut} rows are longer than max_length: {self.max_length} tokens and are cut there")
        return lines


def encode(
    rows: Sequence[Row], labels: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> LabelSet:
    """The rows' tokens and numbers; the tokens that end a text stay where it is cut."""
    tokens = tokenizer([row.text for row in rows], truncation=True, max_length=max_length, verbose=False)["input_ids"]
    whole = tokenizer([row.text for row in rows], verbose=False)["input_ids"]
    ids = [torch.tensor(one, dtype=torch.int64) for one in tokens]
    encoded = [Encoded(one, torch.zeros(len(one), dtype=torch.bool)) for one in ids]
    classes = torch.tensor([labels.index(row.label) for row in rows])
    return LabelSet(labels, encoded, classes, max_length, sum(len(one) > max_length for one in whole))


@dataclass(frozen=True)
class LabelStream:
    """The endless stream of batches: `input_ids`, `attention_mask` [B,T] and `labels` [B] int64."""

    texts: Stream
    classes: Tensor

    @staticmethod
    def of(rows: LabelSet, batch_size: int, seed: int, pad: int) -> LabelStream:
        """`pad`: the token that padding is made of."""
        return LabelStream(Stream(rows.encoded, batch_size, seed, None, pad), rows.classes)

    def per_epoch(self) -> int:
        """How many batches show every row once; the same in every epoch."""
        return self.texts.per_epoch()

    def batches(self, start: int) -> Iterator[Batch]:
        """The batches from the `start`-th on, counted from 0 over all epochs."""
        return map(self._labelled, self.texts.batches(start))

    def heaviest(self) -> Batch:
        """Of the first epoch's batches the one that holds the most tokens, padding among them."""
        return self._labelled(self.texts.heaviest())

    def _labelled(self, batch: Batch) -> Batch:
        return {**{name: batch[name] for name in KEPT}, "labels": self.classes[batch["places"]]}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
