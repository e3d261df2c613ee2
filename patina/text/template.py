"""How a conversation is written for a model, and which of its tokens are trained: one object for training and chat."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jinja2.exceptions import TemplateError
from torch import Tensor
from transformers.utils.chat_template_utils import render_jinja_template

from patina.errors import PatinaError
from patina.tensors import ByRust
from patina.text.rows import Row, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""By which a template shows itself where answers begin."""
ANSWERS, THOUGHT = "assistant", "</think>"
PROBE = "§"
"""An answer of a letter that no template writes by itself."""
AT_ONCE = 1000
"""Rows that are made tokens together: the tokenizer's own lists take a hundred bytes a token."""

_WRITTEN = (
    "{%% if bos_token %%}{{ bos_token }}{%% endif %%}"
    "{%% for message in messages %%}"
    "{%% if message['role'] == 'system' %%}{{ message['content'] + '\\n\\n' }}"
    "{%% elif message['role'] == 'user' %%}{{ '%(asked)s\\n' + message['content'] + '\\n\\n' }}"
    "{%% else %%}{{ '%(answered)s\\n' + message['content'] + eos_token }}"
    "{%% if not loop.last %%}{{ '\\n\\n' }}{%% endif %%}{%% endif %%}"
    "{%% endfor %%}"
    "{%% if add_generation_prompt %%}{{ '%(answered)s\\n' }}{%% endif %%}"
)

TEMPLATES = {
    "instruction": _WRITTEN % {"asked": "### Instruction:", "answered": "### Response:"},
    "instruction-zh": _WRITTEN % {"asked": "### 指令:", "answered": "### 回答:"},
}
"""Our own templates, for models that bring none; an answer ends with the tokenizer's end-of-text token."""


class Encoded(NamedTuple):
    """One row as a model sees it."""

    ids: Tensor
    """[T] int32."""
    trained: Tensor
    """[T] bool: which tokens the model learns to say; the first never is, as nothing comes before it."""


class _Rendered(NamedTuple):
    """A row as text, with where its answers are."""

    text: str
    answers: list[tuple[int, int]]
    """Characters from where the model begins to write up to the end of the answer's own words."""
    place: str


@dataclass(frozen=True)
class Template:
    """A tokenizer and the Jinja text by which conversations are written for it."""

    tokenizer: PreTrainedTokenizerBase
    jinja: str
    name: str
    """For messages: `the tokenizer's own`, `instruction`, or a file."""

    def encode(self, rows: Sequence[Row], everything: bool = False) -> list[Encoded]:
        """Rows as tokens; trained are the answers, each with the token that ends it, or `everything`.

        Raises PatinaError, naming the row's place, where the template does not let us see which tokens these are.
        """
        written = [self._render(row) for row in rows]
        parts = [written[at : at + AT_ONCE] for at in range(0, len(written), AT_ONCE)]
        return [encoded for part in parts for encoded in self._encode(part, everything)]

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """The tokens after which the model writes its answer."""
        return self.tokenizer(self.asked(turns, "the conversation"), add_special_tokens=False)["input_ids"]

    def asked(self, turns: Sequence[Turn], place: str) -> str:
        """The text after which the model writes its answer; `place` names the conversation in messages."""
        return self._write(turns, answer_next=True, place=place)[0].removesuffix(self._unsaid)

    @cached_property
    def end(self) -> int:
        """The token that ends an answer. Raises PatinaError where the template ends answers without one."""
        (row,) = self.encode([Row((Turn("user", "a"), Turn(ANSWERS, "b")), self.name)])
        return int(row.ids[row.trained][-1])

    def save(self, folder: Path) -> None:
        """Put the tokenizer into a folder, with the template to go with it. Raises OSError."""
        self.tokenizer.chat_template = self.jinja
        with ByRust(folder):
            self.tokenizer.save_pretrained(folder)

    def _encode(self, written: Sequence[_Rendered], everything: bool) -> Iterator[Encoded]:
        texts = [one.text for one in written]
        tokens = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        for ids, places, one in zip(tokens["input_ids"], tokens["offset_mapping"], written, strict=True):
            yield self._encoded(ids, places, one, everything)

    def _render(self, row: Row) -> _Rendered:
        if not row.turns:
            return self._raw(row)
        text, marked = self._write(row.turns, answer_next=False, place=row.place)
        starts = marked if MARK.search(self.jinja) else self._starts(row, text)
        answers = [turn for turn in row.turns if turn.role == ANSWERS]
        if len(starts) != len(answers):
            raise PatinaError(f"{row.place}: {self._faulty()} marks {len(starts)} of {len(answers)} answers; {REMEDY}")
        ends = [self._words_end(turn, text, start, row.place) for turn, start in zip(answers, starts, strict=True)]
        return _Rendered(text, list(zip(starts, ends, strict=True)), row.place)

    def _raw(self, row: Row) -> _Rendered:
        """A text that is no conversation is learned whole, between the marks that begin and end texts."""
        begin, end = (str(mark or "") for mark in (self.tokenizer.bos_token, self.tokenizer.eos_token))
        return _Rendered(f"{begin}{row.text}{end}", [(len(begin), len(begin) + len(row.text))], row.place)

    def _starts(self, row: Row, text: str) -> list[int]:
        """Where the model begins to write each answer: the conversation so far, and the prompt for what comes next,
        must be the beginning of the whole."""
        starts = []
        for number, turn in enumerate(row.turns):
            if turn.role != ANSWERS:
                continue
            before = self.asked(row.turns[:number], row.place)
            if not text.startswith(before):
                raise PatinaError(
                    f"{row.place}: {self._faulty()} writes a conversation otherwise once it goes on (turn "
                    f"{number + 1}), so that what the model is to learn cannot be told from what it is asked; {REMEDY}"
                )
            starts.append(len(before))
        return starts

    @cached_property
    def _unsaid(self) -> str:
        """What the prompt for an answer ends in though no answer begins with it: DeepSeek-R1's `<think>` and newline,
        whose thoughts the template takes out of every answer. Left out, so that a chat asks as training did."""
        asked = (Turn("user", "a"),)
        before, _ = self._write(asked, answer_next=True, place=self.name)
        whole, _ = self._write((*asked, Turn(ANSWERS, PROBE)), answer_next=False, place=self.name)
        said, found, _ = whole.partition(PROBE)
        return before.removeprefix(said) if found and before.startswith(said) else ""

    def _words_end(self, turn: Turn, text: str, start: int, place: str) -> int:
        """Where an answer's own words end. Templates may trim them, and set what was thought before them apart."""
        words = turn.text.rpartition(THOUGHT)[2].strip()
        found = text.find(words, start)
        if found < 0:
            raise PatinaError(f"{place}: {self._faulty()} changes the words of an answer ({words[:40]!r}); {REMEDY}")
        return found + len(words)

    def _encoded(self, ids: list[int], places: list[tuple[int, int]], row: _Rendered, everything: bool) -> Encoded:
        trained = torch.full((len(ids),), everything, dtype=torch.bool)
        for start, words_end in row.answers:
            last = self._end_of_turn(ids, places, row, words_end)
            # a token over the border is trained: no letter of an answer is left out
            first = next(at for at, (_, end) in enumerate(places) if end > start)
            trained[first : last + 1] = True
        trained[:1] = False
        return Encoded(torch.tensor(ids, dtype=torch.int32), trained)

    def _end_of_turn(self, ids: list[int], places: list[tuple[int, int]], row: _Rendered, words_end: int) -> int:
        """The index of the token that ends an answer: the first that stands for no text, with only spaces before it."""
        for at, (token, (start, _)) in enumerate(zip(ids, places, strict=True)):
            if start >= words_end and token in self._marks:
                if row.text[words_end:start].strip():
                    break
                return at
        raise PatinaError(
            f"{row.place}: {self._faulty()} ends an answer without a token of the tokenizer's that says so, and a "
            "model trained on it never learns to stop; write text.template: the path of your own Jinja file, with "
            "{{ eos_token }} after the answer"
        )

    @cached_property
    def _marks(self) -> frozenset[int]:
        return frozenset(self.tokenizer.added_tokens_decoder)

    def _write(self, turns: Sequence[Turn], answer_next: bool, place: str) -> tuple[str, list[int]]:
        """The conversation as text, and the places where the template itself marks an answer's begin."""
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        try:
            (text,), marked = render_jinja_template(
                conversations=[messages],
                chat_template=self.jinja,
                add_generation_prompt=answer_next,
                return_assistant_tokens_mask=bool(MARK.search(self.jinja)),
                **_texts(self.tokenizer.special_tokens_map),
            )
        except (TemplateError, TypeError) as error:
            raise PatinaError(f"{place}: {self._faulty()} refuses this conversation ({error}); {REMEDY}") from error
        return str(text), [int(start) for start, _ in marked[0]] if marked else []

    def _faulty(self) -> str:
        return f"the chat template ({self.name})"


REMEDY = "write text.template: instruction (or instruction-zh), or the path of your own Jinja file"


def choose_template(tokenizer: PreTrainedTokenizerBase, wanted: str = "auto") -> Template:
    """`auto`: the tokenizer's own, or `instruction` where it has none; a name of TEMPLATES, or a Jinja file's path.

    Raises PatinaError for a file that is not there, and for a tokenizer that cannot tell where its tokens stand.
    """
    if not tokenizer.is_fast:
        raise PatinaError("base_model: its tokenizer cannot say which letters its tokens stand for; take another base")
    template = Template(tokenizer, *_jinja(tokenizer, wanted))
    if template.name in TEMPLATES and tokenizer.eos_token is None:
        raise PatinaError(
            f"text.template: {template.name} ends answers with the tokenizer's end-of-text token, and this one has "
            "none; write the path of your own Jinja file"
        )
    return template


def _jinja(tokenizer: PreTrainedTokenizerBase, wanted: str) -> tuple[str, str]:
    """The Jinja text and its name."""
    own = tokenizer.chat_template
    if isinstance(own, Mapping):
        own = own.get("default")
    if wanted == "auto" and own:
        return str(own), "the tokenizer's own"
    name = "instruction" if wanted == "auto" else wanted
    if name in TEMPLATES:
        return TEMPLATES[name], name
    try:
        return Path(name).read_text(encoding="utf-8"), name
    except (OSError, UnicodeDecodeError) as error:
        raise PatinaError(
            f"text.template: {name!r} is none of auto, {', '.join(TEMPLATES)}, and no file that can be read ({error}); "
            "write one of them, or the path of a Jinja file"
        ) from error


def _texts(special: Mapping[str, Any]) -> dict[str, Any]:
    """The special tokens that templates may call by name, without lists of others."""
    return {name: str(token) for name, token in special.items() if not isinstance(token, list | tuple)}
