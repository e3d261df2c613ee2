"""The Modelfile by which Ollama loads a merged model: its template in Go's syntax, made from that of training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from patina.errors import PatinaError
from patina.text.rows import Turn
from patina.text.template import ANSWERS, Template

SYSTEM = Turn("system", "§s§")
TALK = (Turn("user", "§u1§"), Turn(ANSWERS, "§a1§"), Turn("user", "§u2§"), Turn(ANSWERS, "§a2§"), Turn("user", "§u3§"))
"""Texts that no template holds, to see what is written around each turn."""
LEFT_OUT = "# No TEMPLATE: {}. Ollama guesses one; check it with `ollama show --template`, or write your own here."


class _Around(NamedTuple):
    """What a template writes around turns that ask and answer by turns."""

    begin: str
    begin_system: str | None
    """None: it takes no system text."""
    after_system: str
    to_answer: str
    """Between what is asked and where the model begins to write."""
    answering: str
    """What an answer that is there has before its words: the space that some write themselves."""
    to_ask: str
    """Between an answer and what is asked next."""


def modelfile(template: Template) -> tuple[str, bool]:
    """The text, and whether it holds the template; where Go's syntax cannot say it, a comment says why."""
    lines = ["# ollama create NAME -f Modelfile", "FROM ."]
    try:
        around = _around(template)
        lines += [] if around.begin_system is not None else ["# The template takes no system text."]
        lines += [f'TEMPLATE """{_go(around)}"""']
        spoken = True
    except PatinaError as reason:
        lines += [LEFT_OUT.format(reason)]
        spoken = False
    return "\n".join([*lines, f'PARAMETER stop "{template.tokenizer.decode([template.end])}"', ""]), spoken


def _around(template: Template) -> _Around:
    """Raises PatinaError, saying what Go's syntax has no words for."""
    if "strftime_now" in template.jinja:
        raise PatinaError("the template writes the date of the day")
    begin, *between = _between(template, TALK)
    if between[0] != between[2] or not between[0].startswith(between[4]) or between[1] != between[3]:
        raise PatinaError("the template writes later turns otherwise than the first")
    try:
        begin_system, after_system, *rest = _between(template, (SYSTEM, *TALK))
    except PatinaError:
        begin_system, after_system, rest = None, "", between
    if rest != between:
        raise PatinaError("the template writes turns otherwise after a system text")
    answering = between[0].removeprefix(between[4])
    found = _Around(begin, begin_system, after_system, between[4], answering, between[1])
    if any('"""' in (text or "") for text in found):
        raise PatinaError("the template holds three quotes, which end a text there")
    return found


def _between(template: Template, turns: Sequence[Turn]) -> list[str]:
    """What stands before, between and after the turns of a conversation that the model is to answer."""
    text = template.asked(turns, "the Modelfile")
    found = []
    for turn in turns:
        before, mark, text = text.partition(turn.text)
        if not mark:
            raise PatinaError("the template changes or moves what is said")
        found.append(before)
    return [_without_begin(template, found[0]), *found[1:], text]


def _without_begin(template: Template, text: str) -> str:
    """Ollama puts the mark that begins a text there itself where the tokenizer does so."""
    mark = template.tokenizer.bos_token_id
    ids = template.tokenizer("a")["input_ids"]
    return text.removeprefix(str(template.tokenizer.bos_token)) if mark is not None and ids[0] == mark else text


def _go(around: _Around) -> str:
    """Ollama gives the system text apart, and in the list of messages too."""
    plain = _literal(around.begin)
    begin = plain
    if around.begin_system is not None:
        said = f"{_literal(around.begin_system)}{{{{ .System }}}}{_literal(around.after_system)}"
        begin = f"{{{{ if .System }}}}{said}{{{{ else }}}}{plain}{{{{ end }}}}"
    asked = f'{{{{ if eq .Role "user" }}}}{{{{ .Content }}}}{_literal(around.to_answer)}'
    said = f"{_literal(around.answering)}{{{{ .Content }}}}{_literal(around.to_ask)}"
    answered = f'{{{{ else if eq .Role "assistant" }}}}{said}{{{{ end }}}}'
    return f"{begin}{{{{ range .Messages }}}}{asked}{answered}{{{{ end }}}}"


def _literal(text: str) -> str:
    return text.replace("{{", '{{ "{{" }}')
