"""Next-token loss without the logits of all tokens in memory: a chunk at a time, computed again on the way back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

CHUNK = 1024
"""Tokens whose logits are in memory together: 150,000 words of vocabulary make 0.3 GB of them in half precision."""


class Said(NamedTuple):
    """What the model made of some tokens."""

    loss: Tensor
    """Cross-entropy summed over them, 0-dim fp32."""
    right: Tensor
    """How many of them it held the likeliest, 0-dim int64."""


def next_token(head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, chunk: int = CHUNK) -> Said:
    """`hidden` [N,H] one place before each of the tokens `targets` [N]; `head` makes logits [n,V] of [n,H].

    The products are in whatever precision `head` computes in, softmax and sum in fp32.
    """
    again: dict[str, Any] = {
        "use_reentrant": False,
        "preserve_rng_state": False,
    }  # nothing in an output layer is random
    parts = [
        checkpoint(_chunk, head, hidden[at : at + chunk], targets[at : at + chunk], **again)
        for at in range(0, len(targets), chunk)
    ]
    loss, right = zip(*parts, strict=True)
    return Said(torch.stack(loss).sum(), torch.stack(right).sum())


def _chunk(head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logits = head(hidden)
    right = (logits.detach().argmax(-1) == targets).sum()
    return F.cross_entropy(logits.float(), targets, reduction="sum"), right
