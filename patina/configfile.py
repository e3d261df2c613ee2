"""Reads a config file and the command line's overrides, and names everything that is wrong with them at once."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from patina.config import Config, field_of, inner, lists, sections
from patina.configmodes import DATA, IMAGE, as_data, is_foreign, others_data, refusal
from patina.configpresets import fill
from patina.configtext import IMPLIED
from patina.configvalues import Unfit, check_agreed, example, is_empty, read_value, truth
from patina.configwords import SWITCHES, agreed, canonical, suggest
from patina.configyaml import ConfigError, Entry, Problem, Source, read_file, read_overrides

__all__ = ["ConfigError", "dump", "load"]


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `key=value` overrides, and check the whole of it; raises ConfigError."""
    file, command = Source(str(path), ": ", True), Source("command line", "=", False)
    problems: list[Problem] = []
    written = [read_file(path, file, problems), read_overrides(overrides, command, problems)]
    given: dict[str, Entry] = {}
    for entries in written:
        fresh = _resolve(entries, problems)
        kept = {key: entry for key, entry in given.items() if not (one := inner(key)) or one.list not in fresh}
        given = kept | fresh
    _refuse_gaps(given, problems)
    fill(given)
    _settle_mode(given, problems)
    if "mixed_precision" not in {problem.key for problem in problems}:
        problems += [problem for entries in written for entry in entries for problem in _switched_off(entry, given)]
    problems += [problem for entries in written for entry in entries for problem in _unmet(entry, given)]
    config = _build(given, file, problems)
    if config is None or problems:
        raise ConfigError("\n".join(map(str, sorted(problems, key=_reading_order))))
    return config


def _settle_mode(given: dict[str, Entry], problems: list[Problem]) -> None:
    """Take the other mode's training data as this mode's own, and refuse what else has no meaning in it."""
    chosen = given["task_type"].value if "task_type" in given else None
    mode = str(chosen or IMAGE)
    try:
        _settle_data(given, mode)
    except Unfit as unfit:
        problems.append(_complain(given.pop(others_data(mode)), unfit))
    for entry in given.values():
        # a value that is the default anyway asks for nothing: `dump` writes all keys
        if is_foreign(entry.key, mode) and entry.value not in (None, field_of(entry.key).default):
            problem, remedy = refusal(entry.key, mode)
            problems.append(_complain(entry, Unfit(problem, remedy=remedy)))


def _refuse_gaps(given: dict[str, Entry], problems: list[Problem]) -> None:
    """Complain of what is said of a list's section where there is none before it, and forget it."""
    for name in lists():
        places = {one.at for key in given if (one := inner(key)) and one.list == name}
        gap = next(at for at in count() if at not in places)
        for key in [key for key in given if (one := inner(key)) and one.list == name and one.at > gap]:
            if not any(problem.word == f"{name}[{gap}]" for problem in problems):
                unfit = Unfit(f"there is no {name}[{gap}] before it", remedy="they are counted from 0")
                problems.append(_complain(given[key], unfit))
            del given[key]


def _settle_data(given: dict[str, Entry], mode: str) -> None:
    own, other = DATA[mode], others_data(mode)
    written = given.get(other)
    if written is None or written.value is None:
        return
    try:
        value = as_data(written.value, mode)
    except ValueError:
        raise Unfit("is a list", remedy="name one folder of pictures") from None
    first = given.get(own)
    if first and first.value not in (None, value) and first.source == written.source:
        raise Unfit(f"says {spell(written.value)}, but {first.word} says {spell(first.value)}", remedy="keep one")
    if not first or first.value is None or not written.source.has_lines:
        given[own] = replace(written, key=own, value=value)
    del given[other]


def _reading_order(problem: Problem) -> tuple[bool, float]:
    """File before command line, line by line; what no line says comes after the last."""
    return not problem.source.has_lines, problem.line or math.inf


def dump(config: Config) -> str:
    """The config as YAML with every key written out; `load` makes an equal Config of it."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _resolve(entries: Sequence[Entry], problems: list[Problem]) -> dict[str, Entry]:
    """The entries of one source by our own keys, with their values read."""
    given: dict[str, Entry] = {}
    for entry in entries:
        try:
            if (read := _read(entry)) is None:
                continue
            first = given.setdefault(read.key, read)
            if first.value != read.value:
                where = f" on line {first.line}" if first.line else ""
                clash = f"says {spell(read.value)}, but {first.word}{where} says {spell(first.value)}"
                raise Unfit(clash, remedy="keep one of them")
        except Unfit as unfit:
            problems.append(_complain(entry, unfit))
    return given


def _read(entry: Entry) -> Entry | None:
    """The entry with our key for it and its value; None if it only says what we do anyway; raises Unfit."""
    word, node = entry.word, entry.node
    if word in sections() and is_empty(node):
        return None
    if row := agreed(word):
        check_agreed(row, node)
        return None
    if word in {row[0] for row in IMPLIED}:
        return None  # `_unmet` sees to it
    key = canonical(word)
    if key is None and word in sections():
        raise Unfit("is a group of keys", remedy=f"write its keys as {word}.KEY{entry.source.equals}VALUE")
    if key is None:
        near = suggest(word)
        raise Unfit(
            "unknown key", remedy=f"did you mean {near}?" if near else "take it out; docs/config.md lists all keys"
        )
    if word in SWITCHES:
        return replace(entry, key=key, value=SWITCHES[word]) if not is_empty(node) and truth(node) else None
    return replace(entry, key=key, value=read_value(key, node))


def _switched_off(entry: Entry, given: dict[str, Entry]) -> list[Problem]:
    """The problem with `fp16: false` in a run that computes in fp16 all the same."""
    if entry.word not in SWITCHES or is_empty(entry.node) or truth(entry.node):
        return []
    chosen = given["mixed_precision"].value if "mixed_precision" in given else None
    if (chosen or example("mixed_precision")) != entry.word:
        return []
    other = " or ".join(
        f"mixed_precision{entry.source.equals}{word}" for word in ("bf16", "fp16", "fp32") if word != entry.word
    )
    return [_complain(entry, Unfit(f"is switched off, but mixed_precision is {entry.word}", remedy=f"write {other}"))]


def _unmet(entry: Entry, given: dict[str, Entry]) -> list[Problem]:
    """The problem with another tool's switch that says otherwise than our key."""
    row = next((row for row in IMPLIED if row[0] == entry.word), None)
    if row is None or is_empty(entry.node):
        return []
    _, key, why = row
    try:
        wanted = truth(entry.node)
    except Unfit as unfit:
        return [_complain(entry, unfit)]
    if wanted == (key in given and given[key].value is not None):
        return []
    number = f"write {key}{entry.source.equals}{example(key)}"
    remedy = f"{number}, or take {entry.word} out" if wanted else f"take {entry.word} or {key} out"
    return [_complain(entry, Unfit(why, remedy=remedy))]


def _complain(entry: Entry, unfit: Unfit) -> Problem:
    remedy = unfit.remedy or f"write e.g. {entry.word}{entry.source.equals}{spell(unfit.example)}"
    return Problem(entry.source, entry.line, entry.word, f"{unfit}; {remedy}", canonical(entry.word))


def spell(value: object) -> str:
    """A value as one writes it in the file, on one line."""
    if value is None:
        return "nothing"
    if isinstance(value, tuple):
        return yaml.safe_dump(list(value), default_flow_style=True, width=math.inf, allow_unicode=True).strip()
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _build(given: dict[str, Entry], file: Source, problems: list[Problem]) -> Config | None:
    """Validate what was given; adds problems. Keys already complained of take a value that passes, so that one
    mistake does not hide another."""
    bad = {problem.key for problem in problems}
    values = {key: entry.value for key, entry in given.items() if entry.value is not None and key not in bad}
    values |= {key: example(key) for key in bad if key and field_of(key).is_required()}
    try:
        return Config.model_validate(_nested(values))
    except ValidationError as error:
        fresh = [problem for item in error.errors() for problem in _explain(item, given, file, bad)]
    if not fresh:
        return None
    problems += fresh
    return _build(given, file, problems)


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    """Values by full key, as the schema nests them."""
    tree: dict[str, Any] = {}
    items: dict[str, dict[int, dict[str, Any]]] = {}
    for key, value in values.items():
        if one := inner(key):
            items.setdefault(one.list, {}).setdefault(one.at, {})[one.leaf] = value
            continue
        section, _, leaf = key.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[leaf] = value
    for name, held in items.items():
        section, _, leaf = name.rpartition(".")
        tree.setdefault(section, {})[leaf] = [held[at] for at in sorted(held)]
    return tree


PHRASES = {
    "missing": "is missing",
    "greater_than": "{value} is too small, it must be more than {gt}",
    "greater_than_equal": "{value} is too small, it must be at least {ge}",
    "less_than": "{value} is too large, it must be less than {lt}",
    "less_than_equal": "{value} is too large, it must be at most {le}",
    "multiple_of": "{value} is not a multiple of {multiple_of}",
    "too_short": "is an empty list",
}
"""What the schema's limits are called, by pydantic's names for them. Wrong types never get that far."""


def _explain(error: ErrorDetails, given: dict[str, Entry], file: Source, bad: set[str | None]) -> list[Problem]:
    """The problems in one of pydantic's errors that do not merely follow from a bad key."""
    ctx = error.get("ctx", {})
    if error["type"] == "rules":
        return [_broken_rule(keys, text, given, file) for keys, text in ctx["broken"] if bad.isdisjoint(keys)]
    if error["type"] == "literal_error":
        return []  # read_value knows the choices: this is the other half of "a choice or a list"
    key = _key_at(error["loc"])
    entry = given[key] if key in given else Entry(file, _line_near(key, given), key, yaml.ScalarNode("", ""))
    text = PHRASES[error["type"]].format(value=spell(entry.value), **{k: spell(v) for k, v in ctx.items()})
    return [replace(_complain(entry, Unfit(text, example(key))), key=key)]


def _key_at(place: tuple[int | str, ...]) -> str:
    """The key that pydantic means by a place in the nested values."""
    first, *rest = place
    if first not in sections():
        return str(first)
    key = f"{first}.{rest[0]}"
    return f"{key}[{rest[1]}].{rest[2]}" if key in lists() and len(rest) > 2 else key


def _line_near(key: str, given: dict[str, Entry]) -> int | None:
    """Where the section of a list begins that a missing key is of."""
    if not (wanted := inner(key)):
        return None
    return next((entry.line for other, entry in given.items() if (one := inner(other)) and one[:2] == wanted[:2]), None)


def _broken_rule(keys: tuple[str, ...], text: str, given: dict[str, Entry], file: Source) -> Problem:
    entry = next((given[key] for key in keys if key in given), None)
    source, line = (entry.source, entry.line) if entry else (file, None)
    return Problem(source, line, keys[0], text, keys[0])
