"""Classification: a model with a head for labels learns to tell each text's."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from patina.task import Batch
from patina.tasks.text import COMPONENT

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROWS = ("input_ids", "attention_mask", "labels", "places", "names")
"""What a batch holds row by row."""


class Tally(NamedTuple):
    """What one process computed since it was last asked."""

    right: int
    """Rows whose label the model held the likeliest."""
    rows: int
    tokens: int
    """All tokens, padding left out."""


class LabelTask(nn.Module):
    """Cross-entropy of the rows' labels. Batches are as `patina.text.labelset.LabelStream` makes them."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        # a decoder would keep what only writing on needs
        takes = inspect.signature(model.forward).parameters
        self._options: dict[str, Any] = {"use_cache": False} if "use_cache" in takes else {}
        self._right = torch.zeros((), dtype=torch.int64, device=model.device)
        self._rows = self._tokens = 0

    def adapted(self) -> Mapping[str, nn.Module]:
        return {COMPONENT: self.model}

    def count(self, batch: Batch) -> int:
        return len(batch["labels"])

    def prepare(self, batch: Batch) -> Batch:
        return batch

    def split(self, prepared: Batch, most: int) -> list[Batch]:
        return [_part(prepared, at, most) for at in range(0, len(prepared["labels"]), most)]

    def forward(self, batch: Batch) -> Tensor:
        logits, labels = self.logits(batch), batch["labels"].to(self.model.device)
        if torch.is_grad_enabled():
            self._right += (logits.detach().argmax(-1) == labels).sum()
            self._rows += len(labels)
            self._tokens += batch["tokens"]
        return F.cross_entropy(logits, labels, reduction="sum")

    def logits(self, batch: Batch) -> Tensor:
        """[B,labels] fp32."""
        put = {name: batch[name].to(self.model.device) for name in ("input_ids", "attention_mask")}
        return self.model(**put, **self._options).logits.float()

    def tally(self) -> Tally:
        """What was computed for training since the last call."""
        found = Tally(int(self._right), self._rows, self._tokens)
        self._right.zero_()
        self._rows = self._tokens = 0
        return found


def _part(batch: Batch, at: int, most: int) -> Batch:
    """`most` rows from the `at`-th on. The first part is told all the tokens, which nobody asks for row by row."""
    return {**batch, **{name: batch[name][at : at + most] for name in ROWS}, "tokens": 0 if at else batch["tokens"]}
