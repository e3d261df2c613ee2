"""What a model makes of conversations that it is not trained on."""

from __future__ import annotations

from itertools import islice

import torch

from patina.tasks.text import TextTask
from patina.text.pack import Stream


@torch.no_grad()
def held_out(task: TextTask, stream: Stream) -> tuple[float, float]:
    """Mean loss, and share of tokens held the likeliest, over the trained tokens of one epoch of `stream`."""
    loss, right, trained = 0.0, 0, 0
    for batch in islice(stream.batches(0), stream.per_epoch()):
        said = task.said(batch)
        loss, right, trained = loss + float(said.loss), right + int(said.right), trained + len(batch["targets"])
    return loss / trained, right / trained
