"""What settings a set of texts asks for, each with its reason: what `train.py --plan` advises.

The rules: LoRA on all linear layers, at about ten times the rate of full training, with fewer than 32 rows a step
(Schulman et al. 2025, "LoRA Without Regret"); alpha twice the rank, ranks by how much is new, and dropout by how many
rows, as the tutorials have it; few rows several times, many rows once (Ouyang et al. 2022 and what users report who
trained 147 rows for too few steps, or fifty times).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from patina.text.dataset import Rows
from patina.text.rows import Row

MANY, SOME, FEW = 10_000, 1_000, 200
"""Rows."""
STEPS = 200
"""Optimizer steps below which a run is over before anything is learned."""
MOST_EPOCHS, MOST_ROWS = 10, 16
"""Passes over a small set, and rows a step."""
THOUGHTFUL = 400
"""Tokens of an answer that make it more than a reply."""
STEP = 64
"""Lengths are rounded up to multiples of it."""


class Facts(NamedTuple):
    """What is known of a set of conversations."""

    rows: int
    lengths: Sequence[int]
    """Tokens of each row, before anything is cut."""
    trained: int
    """Tokens that are learned."""
    json: bool
    """Most answers are a JSON object."""
    room: int
    """Tokens that a row may have, `max_length`."""
    sight: int
    """Tokens that the model can see."""
    measured: bool
    """Something is held out to measure on."""


class Tip(NamedTuple):
    """One setting."""

    key: str
    value: Any
    why: str


def facts_of(texts: Sequence[Row], rows: Rows, sight: int, measured: bool) -> Facts:
    """The facts of `texts`, which were made the `rows`."""
    answers = [row.turns[-1].text for row in texts if row.turns]
    objects = sum(map(_is_object, answers))
    many = 2 * objects > len(answers) > 0
    return Facts(len(rows.lengths), rows.lengths, rows.trained, many, rows.max_length, sight, measured)


def advise(facts: Facts) -> list[Tip]:
    """What the set asks for, in the order of a config."""
    long = facts.trained / facts.rows > THOUGHTFUL
    rank, why = _rank(facts, long)
    epochs, why_epochs = _epochs(facts.rows)
    rows = _rows_a_step(facts.rows, epochs)
    batch = min(rows, 4)
    tips = [
        Tip("lora_rank", rank, why),
        Tip("lora_alpha", 2 * rank, "twice the rank"),
        Tip("lora_target", "full", "all linear layers learn more than attention alone, at any rank"),
        Tip("network.dropout", *_dropout(facts.rows)),
        Tip("learning_rate", *_rate(facts.rows)),
        Tip("epochs", epochs, why_epochs),
        Tip("batch_size", batch, f"{rows} rows a step: more than 32 learn less from the same rows"),
        Tip("gradient_accumulation_steps", rows // batch, f"{batch} at a time"),
    ]
    if max(facts.lengths) > facts.room:
        tips.append(Tip("max_length", *_length(facts)))
    if facts.rows >= 50 and not facts.measured:
        tips += [
            Tip("validation.split", 0.1, "to see what carries over"),
            Tip("validation.patience", 3, "and to keep the best state, not the last"),
        ]
    return tips


def as_yaml(tips: Sequence[Tip], now: Mapping[str, Any], written: Sequence[str]) -> list[str]:
    """The lines of a config that say what `tips` do; `now` is what its keys are, `written` those that it says itself.

    What is so already is left out. Of a section's keys each is a line of its own below the section's name.
    """
    lines, section = [], ""
    for key, value, why in tips:
        if now[key] == value:
            continue
        head, _, name = key.rpartition(".")
        if head != section and head:
            lines.append(f"{head}:")
        section = head
        said = f"{'  ' if head else ''}{name}: {_shown(value)}"
        other = f" (the config says {_shown(now[key])})" if key in written else ""
        lines.append(f"{said:<34}# {why}{other}")
    return lines


def _shown(value: Any) -> str:
    """As a config writes it."""
    if isinstance(value, float):
        return f"{value:g}"
    return f"[{', '.join(value)}]" if isinstance(value, tuple) else str(value)


def _rank(facts: Facts, long: bool) -> tuple[int, str]:
    if long:
        return 32, f"long answers, {facts.trained // facts.rows} tokens each: 16 to 32"
    if facts.rows >= SOME:
        return 16, f"{facts.rows:,} rows hold more than a manner: 8 to 16"
    return 8, "a format to keep to: 8 is enough" if facts.json else "a manner of speaking: 2 to 8"


def _dropout(rows: int) -> tuple[float, str]:
    if rows >= MANY:
        return 0.0, "so many rows are not learned by heart"
    return 0.05, "few rows are soon learned by heart; some advise 0 for small sets, which the best state makes up for"


def _rate(rows: int) -> tuple[float, str]:
    if rows < FEW:
        return 1e-4, "few rows, seen often"
    return 2e-4, "ten times that of full training, whatever the rank"


def _epochs(rows: int) -> tuple[int, str]:
    if rows >= MANY:
        return 1, "so many rows are seen once"
    if rows >= SOME:
        return 3, "the usual for some thousand rows"
    enough = math.ceil(STEPS * 4 / rows)
    count = min(MOST_EPOCHS, max(3, enough))
    return count, f"few rows need repeating, some {STEPS} steps; more than {MOST_EPOCHS} times would be by heart"


def _rows_a_step(rows: int, epochs: int) -> int:
    """A power of two, as large as leaves STEPS steps."""
    room = max(1, rows * epochs // STEPS)
    return min(MOST_ROWS, 2 ** int(math.log2(room)))


def _length(facts: Facts) -> tuple[int, str]:
    longest = max(facts.lengths)
    wanted = min(facts.sight, -(-longest // STEP) * STEP)
    if wanted < longest:
        cut = sum(length > wanted for length in facts.lengths)
        return wanted, f"all that the model can see; {cut} rows are longer, and cut"
    return wanted, f"the longest row has {longest} tokens, and is cut now"


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
