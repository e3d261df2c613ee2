"""Before and after: how the embedded language model answers unseen questions, as itself and with a LoRA."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from peft import PeftModel
from transformers import PreTrainedModel

from patina.text.generate import Manner, Reply, replies
from patina.text.rows import Row
from patina.text.template import Template

KEYS = {"answer", "objects"}
MANNER = Manner(most=64)
SHOWN = 4
"""Questions that are shown with both answers."""


class Shares(NamedTuple):
    """What share of the replies is as it should be, of 1."""

    valid: float
    """One JSON object with the keys that were taught."""
    right: float
    """The answer itself: in JSON the words of its `answer`, in prose the words anywhere."""
    stopped: float
    """Ended by the model."""


class Outcome(NamedTuple):
    """Replies and what they are worth."""

    replies: list[Reply]
    shares: Shares


def measure(model: PreTrainedModel, template: Template, rows: Sequence[Row]) -> Outcome:
    """Ask the first turn of each row; the last has the answer that is wanted."""
    said = replies(model, template, [row.turns[:-1] for row in rows], MANNER)
    wanted = [json.loads(row.turns[-1].text)["answer"] for row in rows]
    found = [_object(reply.text) for reply in said]
    right = [
        answer == facts["answer"] if facts else f" {answer}" in f" {reply.text.lower()}"
        for answer, facts, reply in zip(wanted, found, said, strict=True)
    ]
    count = len(rows)
    return Outcome(
        said, Shares(sum(map(bool, found)) / count, sum(right) / count, sum(r.stopped for r in said) / count)
    )


def compare(model: PreTrainedModel, lora: Path, template: Template, rows: Sequence[Row]) -> tuple[Outcome, Outcome]:
    """The base's outcome and the tuned model's, from one copy of the weights."""
    tuned = PeftModel.from_pretrained(model, str(lora)).eval()
    with tuned.disable_adapter():
        before = measure(model, template, rows)
    return before, measure(model, template, rows)


def table(before: Outcome, after: Outcome) -> str:
    """The shares, side by side."""
    words = ("valid JSON with its keys", "answer right", "reply stops by itself")
    rows = zip(words, before.shares, after.shares, strict=True)
    lines = [f"{name:<26}{was:>8.0%}{now:>10.0%}" for name, was, now in rows]
    return "\n".join([f"{'':<26}{'base':>8}{'with LoRA':>10}", *lines])


def examples(rows: Sequence[Row], before: Outcome, after: Outcome) -> str:
    """The first questions with both answers."""
    parts = zip(rows[:SHOWN], before.replies, after.replies, strict=False)
    return "\n".join(f"{row.turns[0].text}\n  base:  {was.text}\n  tuned: {now.text}" for row, was, now in parts)


def _object(text: str) -> dict[str, object] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) and found.keys() == KEYS else None
