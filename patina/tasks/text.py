"""Text mode: a causal language model learns to say the trained tokens of each row."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from patina.engine.arriving import Arriving
from patina.task import Batch
from patina.text.grid import laid_out
from patina.text.head import Said, next_token

if TYPE_CHECKING:
    from transformers import PreTrainedModel

UNASKED = 8
"""Steps that may have ended and not been asked for: a run is told of one before the next but one ends."""
COMPONENT = "model"
"""What the one adapted component is called."""


ROWS = ("input_ids", "position_ids", "attention_mask", "places")
"""What a batch holds row by row; packed, it has more places than rows, and parts of them only tell parts apart."""


class Tally(NamedTuple):
    """What one process computed of a step."""

    right: int
    """Trained tokens that the model held the likeliest."""
    trained: int
    tokens: int
    """All tokens, padding left out."""


class TextTask(nn.Module):
    """Cross-entropy of the trained tokens. Batches are as `patina.text.pack` makes them."""

    def __init__(self, model: PreTrainedModel, plain_head: bool = True) -> None:
        """`plain_head`: the logits are the output layer's of the last hidden states, with nothing done after it."""
        super().__init__()
        self.model, self.plain_head = model, plain_head
        self.apart = False
        """Whether the model's layers are told where rows that lie end to end begin; else they find out by a mask."""
        self._right = torch.zeros(1, dtype=torch.int64, device=model.device)
        self._trained = self._tokens = 0
        self._ended: deque[tuple[Arriving, int, int]] = deque(maxlen=UNASKED)

    def adapted(self) -> Mapping[str, nn.Module]:
        return {COMPONENT: self.model}

    def count(self, batch: Batch) -> int:
        return len(batch["targets"])

    def prepare(self, batch: Batch) -> Batch:
        self._trained += len(batch["targets"])
        self._tokens += batch["tokens"]
        return laid_out(batch) if self.apart else batch

    def split(self, prepared: Batch, most: int) -> list[Batch]:
        parts = [_part(prepared, at, most) for at in range(0, len(prepared["input_ids"]), most)]
        return [laid_out(part) for part in parts] if self.apart else parts

    def forward(self, batch: Batch) -> Tensor:
        said = self.said(batch)
        if torch.is_grad_enabled():
            self._right += said.right
        return said.loss

    def said(self, batch: Batch) -> Said:
        """The loss, summed over the batch's trained tokens, and how many of them were held the likeliest."""
        device = self.model.device
        put: dict[str, Any] = {name: part.to(device) for name, part in batch.items() if isinstance(part, Tensor)}
        predicts, targets = put.pop("predicts"), put.pop("targets")
        if "starts" in put:
            # a mask of four axes transformers takes for one that is ready; none is looked at, and none need be made
            ready = put["starts"].new_empty(1, 1, 1, 1)
            put |= {"cu_seq_lens_q": put.pop("starts"), "attention_mask": ready}
        if self.plain_head:
            head = self.model.get_output_embeddings()
            assert head is not None, "a plain head is one that was found"
            hidden = self.model.base_model(**put, use_cache=False).last_hidden_state
            return next_token(head, hidden.flatten(0, 1)[predicts], targets)
        logits = self.model(**put, use_cache=False).logits
        return next_token(nn.Identity(), logits.flatten(0, 1)[predicts], targets)

    def end_step(self) -> None:
        """What was computed since the last end was of one step; its numbers are on their way to the host."""
        self._ended.append((Arriving(self._right.clone()), self._trained, self._tokens))
        self.forget()

    def forget(self) -> None:
        """What was computed since the last end does not count."""
        self._right.zero_()
        self._trained = self._tokens = 0

    def tally(self) -> Tally:
        """The earliest step that ended and was not asked for."""
        right, trained, tokens = self._ended.popleft()
        return Tally(int(right.read()[0]), trained, tokens)


def _part(batch: Batch, at: int, most: int) -> Batch:
    """`most` rows from the `at`-th on."""
    width = batch["input_ids"].shape[1]
    row = batch["predicts"] // width
    mine = (row >= at) & (row < at + most)
    rows = {name: batch[name][at : at + most] for name in ROWS if name in batch}
    trained = {"predicts": batch["predicts"][mine] - at * width, "targets": batch["targets"][mine]}
    return {**batch, **rows, **trained}
