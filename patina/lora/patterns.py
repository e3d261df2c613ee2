"""Other numbers for some layers: patterns over layers' paths and over the blocks that WebUI users know."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from patina.errors import PatinaError


class NotAPattern(ValueError):
    """A text that is no `PATTERN=NUMBER`: the problem and what to write."""


class Pattern(NamedTuple):
    """One number for the layers that a regular expression finds."""

    text: str
    search: re.Pattern[str]
    number: float

    def fits(self, component: str, path: str) -> bool:
        """Whether it is the layer's whole block, or is found in `component.path`."""
        return bool(self.search.fullmatch(block(path)) or self.search.search(f"{component}.{path}"))


def parse(texts: Sequence[str], whole: bool = False, least: float = 0) -> tuple[Pattern, ...]:
    """`PATTERN=NUMBER` texts; numbers finite, `least` or more, and `whole` if asked. Raises NotAPattern."""
    return tuple(_parse(text, whole, least) for text in texts)


def number_at(patterns: Sequence[Pattern], component: str, path: str) -> float | None:
    """The number of the first pattern that fits a layer; None where none does."""
    return next((pattern.number for pattern in patterns if pattern.fits(component, path)), None)


def refuse_unused(key: str, patterns: Sequence[Pattern], places: Iterable[tuple[str, str]]) -> None:
    """Raise PatinaError for a pattern that fits no adapted (component, path): it is a slip of the pen."""
    known = list(places)
    for pattern in patterns:
        if not any(pattern.fits(*place) for place in known):
            blocks = ", ".join(sorted({block(path) for _, path in known}))
            raise PatinaError(
                f"network.{key}: {pattern.text!r} fits no adapted layer; their blocks are {blocks}, "
                f"and the first of their paths is {'.'.join(known[0])}"
            )


def block(path: str) -> str:
    """A UNet layer's block in the original layout: `IN01`, `MID`, `OUT05`; `BASE` for what is in none of them.

    Each of the UNet's levels has two blocks and a downsampler on its way in, three blocks on its way out, the last
    with the upsampler (Stable Diffusion 1.x, 2.x and XL alike).
    """
    if path.startswith("mid_block."):
        return "MID"
    found = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.", path)
    if found is None:
        return "IN00" if path == "conv_in" else "BASE"
    way, level, kind, place = found[1], int(found[2]), found[3], int(found[4])
    inner = 2 if kind.endswith("samplers") else place
    return f"IN{3 * level + inner + 1:02}" if way == "down" else f"OUT{3 * level + inner:02}"


def _parse(text: str, whole: bool, least: float) -> Pattern:
    pattern, equals, number = text.rpartition("=")
    if not equals or not pattern.strip():
        raise NotAPattern(f"{text!r} is not PATTERN=NUMBER; write e.g. MID=8")
    try:
        search = re.compile(pattern.strip())
    except re.error as error:
        raise NotAPattern(f"{pattern.strip()!r} is no regular expression ({error}); write e.g. OUT.*=8") from None
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= least and (not whole or value == int(value))):
        what = "whole number" if whole else "number"
        raise NotAPattern(f"{number.strip()!r} in {text!r} is no {what} of {least:g} or more; write e.g. MID=8")
    return Pattern(text, search, value)
