"""The few questions that a run on texts asks again and again, to show what training makes of the answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from patina.errors import PatinaError
from patina.text.rows import Row, Turn
from patina.text.template import ANSWERS, Template

FIRST = 3
"""Questions of the rows that are asked where the config names none."""
LOOKED_AT = 200
"""Rows among which they are sought."""
MOST = 128
"""Tokens of an answer at most: enough to see what changes, and soon said."""


class Question(NamedTuple):
    """What is asked."""

    turns: tuple[Turn, ...]
    reference: str | None
    """The answer that the row has; None for a question of the config's."""

    @property
    def shown(self) -> str:
        """The question for people: what the user says, or, of several turns, who says what."""
        if len(self.turns) == 1:
            return self.turns[0].text
        return "\n".join(f"{turn.role}: {turn.text}" for turn in self.turns)


class Questions(NamedTuple):
    """All that are asked, and how long an answer may be."""

    each: Sequence[Question]
    most: int
    """Tokens."""


def choose(prompts: Sequence[str], rows: Sequence[Row], template: Template, room: int) -> Questions:
    """The `prompts`, or where there are none the first questions of `rows` that leave room for an answer.

    `room`: tokens that question and answer may have together. Raises PatinaError for a prompt that fills it.
    """
    if prompts:
        found = [Question((Turn("user", prompt),), None) for prompt in prompts]
    else:
        found = list(islice(_fitting(rows, template, room - min(MOST, room // 2)), FIRST))
    lengths = [len(template.prompt(question.turns)) for question in found]
    for prompt, length in zip(prompts, lengths, strict=False):
        if length >= room:
            raise PatinaError(
                f"preview.prompts: {prompt[:40]!r} has {length} tokens as the template writes it, and question and "
                f"answer may have {room} together; write a shorter one"
            )
    return Questions(found, min(MOST, room - max(lengths, default=0)))


def _fitting(rows: Sequence[Row], template: Template, longest: int) -> Iterator[Question]:
    """Each conversation up to its first answer, the same one once; raw texts ask nothing."""
    known = set()
    for row in rows[:LOOKED_AT]:
        place = next((at for at, turn in enumerate(row.turns) if turn.role == ANSWERS), 0)
        asked = row.turns[:place]
        if place and asked not in known and len(template.prompt(asked)) <= longest:
            known.add(asked)
            yield Question(asked, row.turns[place].text)
