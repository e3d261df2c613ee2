"""What a model answers while it trains: the same questions each time, to see beside the base what it has learned."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

from patina.watch import report
from patina.watch.board import Board
from patina.watch.console import say
from patina.watch.tail import Tail, Tailed

BASE = 0
"""The step under which the base's own answers are kept."""
REFUSALS = (RuntimeError, OSError, ValueError, TypeError, LookupError, AttributeError)
"""What models and tokenizers are known to say no with, as one runs out of memory or cannot write answers at all."""


class Asked(NamedTuple):
    """A question as people read it."""

    question: str
    reference: str | None
    """The right answer, where it is known."""


@dataclass
class Answers(Tailed):
    """Writes `samples/answers.jsonl`, a line a sampled step, and `report.html`; a context manager once `begin` ran."""

    asked: Sequence[Asked]
    ask: Callable[[bool], Sequence[str]]
    """Whether of the tuned model or of the base -> an answer to each question."""
    folder: Path
    """The run's."""
    name: str
    every: int
    """Steps between two samplings; 0: only at the last."""
    last: int
    """The run's last step."""
    _failed: bool = field(default=False, init=False)
    _known: dict[int, Mapping[str, str]] = field(default_factory=dict, init=False)
    """Answers by question, by step."""

    @property
    def page(self) -> Path:
        """Where the answers are shown."""
        return self.folder / "report.html"

    def begin(self, start: int, board: Board) -> Self:
        """Go on after step `start`: what was answered later is dropped. Asks the base what it has not been asked."""
        self._board = board
        path = self.folder / "samples" / "answers.jsonl"
        self._known = _until(path, start)
        if any(one.question not in self._known.get(BASE, {}) for one in self.asked):
            self._sample(BASE)
        self._tail = Tail(path, b"".join(self._line(step) for step in sorted(self._known)))
        self._show()
        return self

    def due(self, step: int) -> bool:
        """Whether to ask after `step`."""
        return step == self.last or (self.every > 0 and step % self.every == 0)

    def draw(self, step: int) -> None:
        """Ask the tuned model, and write and show its answers; what goes wrong is said once and stops nothing."""
        if self._sample(step):
            self._tail.add(self._line(step))
            self._show()

    def _sample(self, step: int) -> bool:
        """Whether there are answers."""
        try:
            answers = self.ask(step != BASE)
        except REFUSALS as error:
            self._tell(step, error)
            return False
        fresh = {one.question: answer for one, answer in zip(self.asked, answers, strict=True)}
        self._known[step] = {**self._known.get(step, {}), **fresh}
        for number, one in enumerate(self.asked, start=1):
            self._board.text(f"answers/{number}", _told(one, fresh[one.question], step), step)
        return True

    def _show(self) -> None:
        try:
            report.write(self.page, self.name, self.asked, self._known, self.folder / "metrics.jsonl")
        except (OSError, ValueError) as error:
            self._tell(max(self._known, default=BASE), error)

    def _tell(self, step: int, error: Exception) -> None:
        if not self._failed:
            say(f"step {step}: answers not shown ({' '.join(str(error).split())[:200]}); training goes on")
        self._failed = True

    def _line(self, step: int) -> bytes:
        references = {one.question: one.reference for one in self.asked}
        answers = [
            {"question": question, "reference": references.get(question), "answer": answer}
            for question, answer in self._known[step].items()
        ]
        # Half a surrogate pair, which JSON may hold and UTF-8 may not, becomes JSON's own escape for it.
        text = json.dumps({"step": step, "answers": answers}, ensure_ascii=False)
        return f"{text}\n".encode(errors="backslashreplace")


def _told(one: Asked, answer: str, step: int) -> str:
    reference = [] if one.reference is None else ["", "reference:", one.reference]
    who = "base:" if step == BASE else f"step {step}:"
    return report.inert("\n".join([one.question, *reference, "", who, answer]))


def _until(path: Path, start: int) -> dict[int, Mapping[str, str]]:
    """The whole lines of steps up to `start`; none where a run begins anew."""
    if start == 0 or not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    found = dict(parsed for line in lines if (parsed := _parsed(line)) is not None)
    return {step: answers for step, answers in found.items() if step <= start}


def _parsed(line: str) -> tuple[int, Mapping[str, str]] | None:
    """None for what is no line of ours, or torn."""
    try:
        facts = json.loads(line)
        return int(facts["step"]), {str(one["question"]): str(one["answer"]) for one in facts["answers"]}
    except (ValueError, TypeError, LookupError):
        return None
