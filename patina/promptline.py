"""A prompt as WebUIs and sd-scripts write it on one line: `a cat <lora:ink:0.8> --n blurry --w 512 --h 768 --d 7`."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from patina.errors import PatinaError

TAG = re.compile(r"<lora:([^:>]+)(?::([^:>]*))?>")


@dataclass(frozen=True)
class PromptLine:
    """What one picture is drawn of; None where the line leaves it to the command."""

    text: str
    loras: dict[str, float] = field(default_factory=dict)
    """Name -> weight, as the line's tags say."""
    negative: str | None = None
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int | None = None


def parse_line(line: str) -> PromptLine:
    """Raises PatinaError for an option that is unknown or has no sensible value."""
    words, *options = re.split(r"(?:^|\s)--(?=\w)", line.strip())
    found: dict[str, Any] = {}
    for option in options:
        letter, _, text = option.partition(" ")
        if letter not in OPTIONS:
            raise PatinaError(f"{line!r}: there is no option --{letter}; write one of --{', --'.join(OPTIONS)}")
        name, convert = OPTIONS[letter]
        try:
            found[name] = convert(text.strip())
        except ValueError as error:
            raise PatinaError(f"{line!r}: --{letter} {text.strip()!r} is not a value for it") from error
    loras = {name.strip(): _weight(line, weight) for name, weight in TAG.findall(words)}
    return PromptLine(re.sub(r"\s+", " ", TAG.sub("", words)).strip(), loras, **found)


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are neither empty nor comments, which begin with #."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise PatinaError(f"--prompts {path}: no such file") from error
    except UnicodeDecodeError as error:
        raise PatinaError(f"--prompts {path}: not UTF-8 text ({error}); save it as UTF-8") from error
    return [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


def _weight(line: str, text: str) -> float:
    try:
        weight = float(text or 1)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise PatinaError(f"{line!r}: {text!r} is no weight; write <lora:name:0.8>")
    return weight


def _edge(text: str) -> int:
    if (number := int(text)) < 8 or number % 8:
        raise ValueError(text)
    return number


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(text)
    return number


def _seed(text: str) -> int:
    if not 0 <= (number := int(text)) < 2**63:
        raise ValueError(text)
    return number


OPTIONS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "n": ("negative", str),
    "w": ("width", _edge),
    "h": ("height", _edge),
    "s": ("steps", _count),
    "l": ("guidance", _finite),
    "d": ("seed", _seed),
}
"""sd-scripts' letter -> field and its values."""

AXES: dict[str, Callable[[str], Any]] = {"weight": _finite, "seed": _seed, "steps": _count, "guidance": _finite}
"""What a grid can vary besides the prompt."""
