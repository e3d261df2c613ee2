"""How a written value is read: what a YAML node spells for a key, or why it cannot be that key's."""

import difflib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

from patina.config import field_of, kinds
from patina.configwords import EXTRA, NO, SYNONYMS, YES, Agreed, of_run


class Unfit(ValueError):
    """A key or value that we cannot take: the problem, and either what to do or a value that could be taken."""

    def __init__(self, problem: str, example: object = None, remedy: str = ""):
        super().__init__(problem)
        self.example = example
        self.remedy = remedy


def check_agreed(row: Agreed, node: yaml.Node) -> None:
    """Raise Unfit if `node` asks for something that we do not do."""
    text = node.value.lower() if isinstance(node, yaml.ScalarNode) else ""
    if not is_empty(node) and text != row.value and not (row.value in YES and text in YES):
        raise Unfit(row.why, remedy=f"take {row.word} out")


def is_empty(node: yaml.Node) -> bool:
    """Whether nothing is written: no value, YAML's null, or a quoted nothing."""
    if not isinstance(node, yaml.ScalarNode):
        return False
    return node.value == "" or (node.style is None and node.value.lower() in ("~", "null"))


def truth(node: yaml.Node) -> bool:
    """The yes or no that `node` spells; raises Unfit if it spells neither."""
    text = node.value.lower() if isinstance(node, yaml.ScalarNode) else ""
    if text not in YES + NO:
        raise Unfit("is neither true nor false", example=True)
    return text in YES


def read_value(key: str, node: yaml.Node) -> object:
    """The value that `node` spells for our key `key`, None if it is empty; raises Unfit."""
    if is_empty(node):
        return None
    allowed = kinds(field_of(key).annotation)
    takes_list = any(get_origin(kind) is tuple for kind in allowed)
    if isinstance(node, yaml.SequenceNode) and takes_list:
        return _read_texts(key, node)
    if not isinstance(node, yaml.ScalarNode):
        raise Unfit(f"is a {'list' if isinstance(node, yaml.SequenceNode) else 'group of keys'}", example(key))
    _refuse_unwritable(key, node.value)
    synonyms = SYNONYMS.get(of_run(key), {})
    text = synonyms.get(node.value.lower(), node.value)
    return None if text is None else _read_text(key, text, allowed, takes_list)


def _read_texts(key: str, node: yaml.SequenceNode) -> tuple[str, ...]:
    if not all(isinstance(item, yaml.ScalarNode) and not is_empty(item) for item in node.value):
        raise Unfit("may hold only texts, none of them empty", example(key))
    for item in node.value:
        _refuse_unwritable(key, item.value)
    return tuple(item.value for item in node.value)


def _refuse_unwritable(key: str, text: str) -> None:
    """Refuse what YAML's escapes and broken terminals can spell and no file can hold: a zero byte, half a character."""
    if bad := next((char for char in text if char == "\0" or "\ud800" <= char <= "\udfff"), None):
        raise Unfit(f"may not hold the character {bad!r}", example(key))


def _read_text(key: str, text: str, allowed: tuple[Any, ...], takes_list: bool) -> object:
    choices = choices_of(allowed)
    if choices:
        if text.lower() in choices:
            return choices[text.lower()]
        if takes_list and "," in text:
            return tuple(part.strip() for part in text.split(",") if part.strip())
        near = difflib.get_close_matches(text.lower(), choices, n=1)
        extra = EXTRA.get(key, "")
        raise Unfit(f"{short(text)} is not one of: {', '.join(choices)}{extra}", near[0] if near else example(key))
    if takes_list and str not in allowed:
        raise Unfit(f"{short(text)} is not a list", (text,))
    read, what = READERS[allowed[0]]
    try:
        return read(text)
    except ValueError:
        raise Unfit(f"{short(text)} is not {what}", example(key)) from None


def _whole(text: str) -> int:
    """A whole number, also spelled `1e3` or `4.0`."""
    try:
        return int(text)
    except ValueError:
        number = _number(text)
        if number != int(number):
            raise
        return int(number)


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number


def _flag(text: str) -> bool:
    return truth(yaml.ScalarNode("", text))


READERS: dict[Any, tuple[Callable[[str], object], str]] = {
    int: (_whole, "a whole number"),
    float: (_number, "a number"),
    bool: (_flag, "true or false"),
    str: (str, "a text"),
    Path: (Path, "a path"),
}
"""How each type is read from its text, and what to call it."""


def choices_of(allowed: tuple[Any, ...]) -> dict[str, str | int]:
    """The fixed values among a key's types by how they are written; empty if it has none."""
    return {str(word): word for kind in allowed if get_origin(kind) is Literal for word in get_args(kind)}


def example(key: str) -> Any:
    """A value that `key` can take: the one shown where it is declared, or else its default."""
    field = field_of(key)
    return field.examples[0] if field.examples else field.default


def short(text: str) -> str:
    """The text in quotes, cut to fit a line."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
