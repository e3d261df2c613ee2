"""Rows of tokens in batches: laid end to end in long rows without gaps, or each on its own beside others of its length.

What a batch holds (B rows of T tokens, N of which are trained):
`input_ids`, `position_ids` [B,T] int64; `attention_mask` [B,T], in batches that are not packed; `predicts` [N] int64:
where in the flat [B*T] rows a trained token is predicted, which is one place before it; `targets` [N] int64: these
tokens; `tokens`: how many are no padding; `epoch`, and `places`: the rows, by their numbers in the set.
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from patina.task import Batch
from patina.text.template import Encoded

ALIKE = 50
"""Batches whose rows are sorted by length together: more leave less padding, and less chance in what meets what."""


@dataclass(frozen=True)
class Stream:
    """The endless stream of batches, a function of its fields alone."""

    rows: Sequence[Encoded]
    batch_size: int
    seed: int
    packed: int | None
    """Tokens that a packed row may hold; None: each row stands on its own and is padded."""
    pad: int
    """The token that padding is made of."""

    def per_epoch(self) -> int:
        """How many batches show every row once; the same in every epoch."""
        return len(self._order(0))

    def batches(self, start: int) -> Iterator[Batch]:
        """The batches from the `start`-th on, counted from 0 over all epochs."""
        first, skipped = divmod(start, self.per_epoch())
        for epoch in count(first):
            for bins in self._order(epoch)[skipped if epoch == first else 0 :]:
                yield self.batch(bins, epoch)

    def heaviest(self) -> Batch:
        """Of the first epoch's batches the one that holds the most tokens, padding among them."""

        def tokens(bins: Sequence[Sequence[int]]) -> int:
            return len(bins) * max(sum(len(self.rows[number].ids) for number in members) for members in bins)

        return self.batch(max(self._order(0), key=tokens), 0)

    def batch(self, bins: Sequence[Sequence[int]], epoch: int) -> Batch:
        """Rows of the set, by number: those of one bin are laid end to end."""
        lines = [_line([self.rows[number] for number in members]) for members in bins]
        width = max(len(ids) for ids, _, _ in lines)
        ids = torch.full((len(lines), width), self.pad, dtype=torch.int64)
        # padding is one more row of its own, which nothing before it can see and nothing learns from
        positions = torch.arange(width).repeat(len(lines), 1)
        trained = torch.zeros(len(lines), width, dtype=torch.bool)
        for at, (line, places, mask) in enumerate(lines):
            ids[at, : len(line)], trained[at, : len(line)] = line, mask
            positions[at] = torch.cat([places, torch.arange(width - len(line))])
        found = {"input_ids": ids, "position_ids": positions}
        lengths = torch.tensor([len(line) for line, _, _ in lines])
        if self.packed is None:
            found["attention_mask"] = (torch.arange(width) < lengths[:, None]).long()
        spots = trained.flatten().nonzero().flatten()
        return {
            **found,
            "predicts": spots - 1,
            "targets": ids.flatten()[spots],
            "tokens": int(lengths.sum()),
            "epoch": epoch,
            "places": [number for members in bins for number in members],
        }

    def _order(self, epoch: int) -> list[list[list[int]]]:
        """One epoch: batches of bins of row numbers, each row once; the last batch may be short."""
        # a text seeds the generator through SHA-512; Python's hash() of it would differ from process to process
        rng = random.Random(f"text order {self.seed} {epoch}")
        numbers = list(range(len(self.rows)))
        rng.shuffle(numbers)
        lengths = [len(row.ids) for row in self.rows]
        if self.packed is None:
            bins = [[number] for number in _by_length(numbers, lengths, self.batch_size * ALIKE)]
            batches = _cut(bins, self.batch_size)
        else:
            bins = best_fit(numbers, lengths, self.packed)
            rng.shuffle(bins)
            batches = _cut(bins, self.batch_size)
        rng.shuffle(batches)
        return batches


def best_fit(numbers: Sequence[int], lengths: Sequence[int], room: int) -> list[list[int]]:
    """Rows in as few bins of `room` tokens as best-fit decreasing finds (Johnson 1974: at most 11/9 of the fewest).

    Longest first, each into the fullest bin that takes it. How many bins there are depends on the lengths alone; which
    of equally long rows meet, on the order of `numbers`.
    """
    bins: list[list[int]] = []
    left: list[tuple[int, int]] = []  # (tokens free, bin), sorted
    for number in sorted(numbers, key=lambda number: -lengths[number]):
        at = bisect_left(left, (lengths[number], -1))
        free, chosen = left.pop(at) if at < len(left) else (room, len(bins))
        if chosen == len(bins):
            bins.append([])
        bins[chosen].append(number)
        insort(left, (free - lengths[number], chosen))
    return bins


def _by_length(numbers: Sequence[int], lengths: Sequence[int], pool: int) -> list[int]:
    """The numbers in their order, but sorted by length within each `pool` of them."""
    pools = [numbers[at : at + pool] for at in range(0, len(numbers), pool)]
    return [number for members in pools for number in sorted(members, key=lambda number: lengths[number])]


def _cut(bins: list[list[int]], size: int) -> list[list[list[int]]]:
    return [bins[at : at + size] for at in range(0, len(bins), size)]


def _line(rows: Sequence[Encoded]) -> tuple[Tensor, Tensor, Tensor]:
    """Rows end to end: their tokens, their positions, which begin anew with each, and what is trained."""
    ids = torch.cat([row.ids for row in rows])
    return ids, torch.cat([torch.arange(len(row.ids)) for row in rows]), torch.cat([row.trained for row in rows])
