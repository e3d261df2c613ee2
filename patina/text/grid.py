"""Batches of few shapes, whose rows see themselves alone without a mask: what a step is recorded over."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from patina.task import Batch

WIDE, TRAINED, APART = 64, 256, 16
"""Rows are filled up to multiples of so many tokens, trained tokens to so many, beginnings to so many."""
IGNORED = -100
"""The target of what is only there to fill up: torch's own word for one that has no loss."""


def laid_out(batch: Batch) -> Batch:
    """A batch of `patina.text.pack` filled up, with `starts` [M] int32 in place of `attention_mask`.

    `starts`: where in the flat rows a conversation, or padding, begins, and as often as it takes their end. What fills
    a row up is one more row that nobody sees, what fills up `targets` is IGNORED, predicted at the first place.
    """
    ids, positions = batch["input_ids"], batch["position_ids"]
    rows, width = ids.shape
    more = -width % WIDE
    rest = torch.arange(more).expand(rows, -1)
    positions = torch.cat([positions, rest], dim=1)
    predicts, targets = batch["predicts"], batch["targets"]
    real = targets != IGNORED
    predicts, targets = predicts[real], targets[real]
    spare = -len(targets) % TRAINED
    put = {
        "input_ids": F.pad(ids, (0, more)),
        "position_ids": positions,
        "predicts": F.pad(predicts + predicts // width * more, (0, spare)),
        "targets": F.pad(targets, (0, spare), value=IGNORED),
        "starts": starts_of(positions),
    }
    return {name: part for name, part in batch.items() if name != "attention_mask"} | put


def starts_of(positions: Tensor) -> Tensor:
    """[M] int32, as `laid_out` has it, of positions [B,T]."""
    starts = (positions.flatten() == 0).nonzero().flatten()
    ends = torch.full((1 + -(len(starts) + 1) % APART,), positions.numel())
    return torch.cat([starts, ends]).int()


def shape_of(batch: Batch) -> tuple[int, ...]:
    """What batches have in common that are of one shape when they are laid out, but for how many rows are apart."""
    rows, width = batch["input_ids"].shape
    return rows, -(-width // WIDE), -(-len(batch["targets"]) // TRAINED)
