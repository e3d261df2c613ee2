"""What a model makes of conversations that it is not trained on: its loss, and its answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import torch

from patina.errors import PatinaError
from patina.tasks.text import TextTask
from patina.text.generate import Manner, replies
from patina.text.pack import Stream
from patina.text.rows import Row, Turn
from patina.text.scores import scores
from patina.text.template import THOUGHT, Template

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MOST = 256
"""Tokens of an answer at most: a model that has not learned to stop would write for minutes."""
SPARE = 16
"""Tokens by which an answer may be longer than the longest that is wanted."""
AT_ONCE = 8
"""Questions that are answered together."""


@torch.no_grad()
def held_out(task: TextTask, stream: Stream) -> tuple[float, float]:
    """Mean loss, and share of tokens held the likeliest, over the trained tokens of one epoch of `stream`."""
    loss, right, trained = 0.0, 0, 0
    for batch in islice(stream.batches(0), stream.per_epoch()):
        said = task.said(batch)
        loss, right, trained = loss + float(said.loss), right + int(said.right), trained + len(batch["targets"])
    return loss / trained, right / trained


@dataclass(frozen=True)
class Exam:
    """What a model is asked at each measurement, and what it should say."""

    asked: Sequence[Sequence[Turn]]
    wanted: Sequence[str]
    most: int
    """Tokens of an answer at most."""

    def measure(self, model: PreTrainedModel, template: Template) -> dict[str, float]:
        """The scores of the likeliest answers, by name; neither the model nor the random state is changed."""
        said = replies(model, template, self.asked, Manner(most=self.most), AT_ONCE)
        return scores([_spoken(reply.text) for reply in said], self.wanted)


def examine(rows: Sequence[Row], template: Template, number: int, sight: int) -> Exam:
    """The last question of at most `number` of the rows, from all over the set, for a model that sees `sight` tokens.

    Rows whose question would leave no room for an answer are left out. Raises PatinaError where there are no others.
    """
    talks = [row for row in rows if row.turns]
    drawn = [talks[at * len(talks) // number] for at in range(number)] if len(talks) > number else talks
    lengths = template.tokenizer([row.turns[-1].text for row in drawn], verbose=False)["input_ids"] if drawn else []
    most = min(MOST, max(map(len, lengths), default=0) + SPARE, sight // 2)
    kept = [row for row in drawn if len(template.prompt(row.turns[:-1])) + most <= sight]
    if not kept:
        raise PatinaError(
            "validation.generate: none of the rows that are measured on has a question that the model could read "
            f"whole ({len(rows)} rows, {len(rows) - len(talks)} of them raw texts); leave it out, or name "
            "conversations with shorter questions as validation_data"
        )
    return Exam([row.turns[:-1] for row in kept], [_spoken(row.turns[-1].text) for row in kept], most)


def _spoken(text: str) -> str:
    """An answer without what was thought before it."""
    return text.rpartition(THOUGHT)[2].strip()
