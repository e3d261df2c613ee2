"""Reads YAML and `key=value` words into entries that know their place. Values stay text: YAML's own guesses (`no` is
false, `2e-4` is a text, `010` is eight) are not used."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from patina.config import lists, sections
from patina.errors import PatinaError

MAX_BYTES = 1_000_000
MAX_DEPTH = 8


class ConfigError(PatinaError):
    """A config that cannot be used: a line for each problem, with its place, key and remedy."""


@dataclass(frozen=True)
class Source:
    """Where keys are written."""

    name: str
    equals: str
    """What stands between a key and its value there."""
    has_lines: bool


@dataclass(frozen=True)
class Entry:
    """One key with its value as written, and once they are read, our own key and the value."""

    source: Source
    line: int | None
    """Counted from 1; None on the command line."""
    word: str
    """The key as written; a section's key has the section and a dot before it."""
    node: yaml.Node
    key: str = ""
    value: object = None


@dataclass(frozen=True)
class Problem:
    """Something wrong: its place, the key as written, problem and remedy in one text, and our key if it has one."""

    source: Source
    line: int | None
    word: str
    text: str
    key: str | None = None

    def __str__(self) -> str:
        place = self.source.name if self.line is None else f"{self.source.name}:{self.line}"
        line = f"{place}: {self.word}: {self.text}"
        return "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)


class _NotYaml(ValueError):
    """Text that is not the YAML we take."""

    def __init__(self, line: int, text: str):
        super().__init__(text)
        self.line = line


def read_file(path: Path, source: Source, problems: list[Problem]) -> list[Entry]:
    """All entries of a YAML file in order; adds problems with single keys, raises ConfigError for the whole file."""
    text = _text(path)
    try:
        node = _compose(text)
    except _NotYaml as error:
        raise ConfigError(f"{path}:{error.line}: {error}") from None
    if node is None:
        return []
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path}: holds no keys; write lines such as base_model: ./models/stable-diffusion-v1-5")
    return _entries(node, source, problems)


def read_overrides(overrides: Sequence[str], source: Source, problems: list[Problem]) -> list[Entry]:
    """The entries of `key=value` words; values are plain text, or YAML where they begin with a bracket or a quote."""
    pairs: list[tuple[yaml.Node, yaml.Node]] = []
    for word in overrides:
        key, equals, value = word.partition("=")
        if not equals or not key.strip():
            problems.append(Problem(source, None, word, "is not KEY=VALUE; write e.g. batch_size=4"))
            continue
        try:
            node = _compose(value) if value.strip().startswith(("[", "{", "'", '"')) else None
        except _NotYaml as error:
            problems.append(Problem(source, None, key, str(error)))
            continue
        pairs.append((yaml.ScalarNode("", key.strip()), node or yaml.ScalarNode("", value.strip())))
    return _entries(yaml.MappingNode("", pairs), source, problems)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; give the path of a config file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; give the path of a config file") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: is larger than {MAX_BYTES:,} bytes; is this the right file?")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: is not UTF-8 text; save the file as UTF-8") from None


def _compose(text: str) -> yaml.Node | None:
    """The one YAML document in `text` as nodes, None if it is empty; raises _NotYaml."""
    try:
        _refuse_extras(text)
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _NotYaml(
            mark.line + 1 if mark else 1,
            f"is not YAML ({error.problem or error.context}); look for a missing space after a colon, a tab, "
            "an open quote or bracket here or on the line above",
        ) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _NotYaml(line, f"the character {chr(error.character)!r} may not stand in YAML; take it out") from None


def _refuse_extras(text: str) -> None:
    """Refuse what a config has no use for and what could be used to fill the memory."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        line = event.start_mark.line + 1
        if depth > MAX_DEPTH:
            raise _NotYaml(line, f"is nested more than {MAX_DEPTH} deep; a config has keys and sections only")
        if isinstance(event, yaml.NodeEvent) and event.anchor is not None:
            raise _NotYaml(line, "anchors and aliases (& and *) are not supported; write the value out, or quote it")
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
            raise _NotYaml(line, f"tags such as {event.tag!r} are not supported; take it out, or quote the value")


def _entries(node: yaml.MappingNode, source: Source, problems: list[Problem], section: str = "") -> list[Entry]:
    found: list[Entry] = []
    first_lines: dict[str, int | None] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1 if source.has_lines else None
        if not isinstance(key, yaml.ScalarNode):
            problems.append(Problem(source, line, section or "key", "is not a plain word; write KEY: VALUE"))
            continue
        word = section + key.value
        if word in first_lines:
            first = f", first on line {first_lines[word]}" if first_lines[word] else ""
            problems.append(Problem(source, line, word, f"is given twice{first}; keep one of them"))
            continue
        first_lines[word] = line
        if isinstance(value, yaml.MappingNode) and word in sections():
            found += _entries(value, source, problems, f"{word}.")
        elif isinstance(value, yaml.SequenceNode) and word in lists():
            found.append(Entry(source, line, word, yaml.SequenceNode("", [])))  # it begins anew
            found += _items(value, source, problems, word)
        else:
            found.append(Entry(source, line, word, value))
    return found


def _items(node: yaml.SequenceNode, source: Source, problems: list[Problem], word: str) -> list[Entry]:
    """The entries of a list of sections; a plain value in place of a section is that of its first key."""
    found: list[Entry] = []
    first = next(iter(lists()[word].model_fields))
    for at, item in enumerate(node.value):
        line = item.start_mark.line + 1 if source.has_lines else None
        if isinstance(item, yaml.MappingNode) and item.value:
            found += _entries(item, source, problems, f"{word}[{at}].")
        elif isinstance(item, yaml.ScalarNode) and item.value:
            found.append(Entry(source, line, f"{word}[{at}].{first}", item))
        else:
            empty = f"holds no keys; write its {first}, or take it out"
            problems.append(Problem(source, line, f"{word}[{at}]", empty, word))
    return found
