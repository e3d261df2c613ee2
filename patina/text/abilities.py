"""What a language model can do, found out by trying instead of by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHORT, LONG = 9, 14
"""Tokens in the two rows that are tried."""
EXACT, ROUNDED = 1e-3, 5e-2
"""Largest part of its length by which a last hidden state may differ in fp32, and in half precision. One row that sees
the other differs by a tenth to all of it."""


class Abilities(NamedTuple):
    """What was found."""

    packs: bool
    """Rows laid end to end, with positions that begin anew and no mask, do not see each other."""
    plain_head: bool
    """Logits are the output layer's of the last hidden states, with no scale or cap after it."""


@torch.no_grad()
def look(model: PreTrainedModel) -> Abilities:
    """Try a model, in eval mode, with two short rows of tokens."""
    generator = torch.Generator().manual_seed(0)
    words = model.config.get_text_config().vocab_size
    rows = [torch.randint(words, (1, length), generator=generator).to(model.device) for length in (SHORT, LONG)]
    alone = [_hidden(model, row, torch.arange(row.shape[1])) for row in rows]
    starts = torch.cat([torch.arange(SHORT), torch.arange(LONG)])
    together = _hidden(model, torch.cat(rows, dim=1), starts)
    packs = _alike(together, torch.cat(alone, dim=1))
    head = model.get_output_embeddings()
    logits = model(input_ids=rows[0], use_cache=False).logits
    return Abilities(packs, head is not None and _alike(head(alone[0]), logits))


def _hidden(model: PreTrainedModel, ids: Tensor, positions: Tensor) -> Tensor:
    put = {"input_ids": ids, "position_ids": positions[None].to(ids.device)}
    return model.base_model(**put, use_cache=False).last_hidden_state


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether no vector of the last axis differs by more than rounding does."""
    if one.shape != other.shape:
        return False
    allowed = EXACT if other.dtype == torch.float32 else ROUNDED
    distance = (one - other).float().norm(dim=-1) / other.float().norm(dim=-1).clamp_min(1e-9)
    return bool((distance < allowed).all())
