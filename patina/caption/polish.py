"""From what a model wrote to the prompt that is saved: pruned, replaced, short enough, and with the trigger once."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from patina.caption.style import prune, tidy, without_boilerplate
from patina.errors import PatinaError
from patina.tokenizer import CONTEXT, count_tokens

TEMPLATE = "{trigger}, {caption}"
LIMIT = CONTEXT - 2
"""Tokens of text that Stable Diffusion reads at once, start and end not counted."""

Prune = Literal["auto", "list", "off"]


@dataclass(frozen=True)
class Polish:
    """How captions are finished."""

    trigger: str = ""
    template: str = TEMPLATE
    prune: Prune = "auto"
    """`auto` removes words of style, `list` only says which it would remove."""
    replace: tuple[tuple[str, str], ...] = ()
    blacklist: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for place in ("{trigger}", "{caption}"):
            if self.template.count(place) != 1:
                raise PatinaError(
                    f"--template {self.template!r}: {place} must stand in it once; write for example {TEMPLATE}"
                )


PLAIN = Polish()


@dataclass(frozen=True)
class Finished:
    """A prompt, and what was done to it."""

    prompt: str
    pruned: tuple[tuple[str, str], ...] = ()
    """(phrase, why) of what was removed, or would be."""
    shortened: bool = False


def finish(text: str, polish: Polish, set_wide: Mapping[str, str], before: str = "") -> Finished:
    """A model's caption to a prompt; `before` is a prompt that it is added to, which stays as it is."""
    caption = without_boilerplate(text)
    without, pruned = ("", []) if polish.prune == "off" else prune(caption, set_wide)
    caption = without if polish.prune == "auto" else caption
    for old, new in polish.replace:
        caption = _replaced(caption, old, new)
    for word in (*polish.blacklist, *([polish.trigger] if polish.trigger else [])):
        caption = _replaced(caption, word, "")
    caption = _added(before, _unrepeated(caption, before)) if before else _unrepeated(caption, before)
    return _placed(caption, polish, tuple(pruned), bool(before))


def _placed(caption: str, polish: Polish, pruned: tuple[tuple[str, str], ...], begun: bool) -> Finished:
    """The caption in its template, cut at a word where the whole would be too long."""

    def whole(part: str) -> str:
        if begun or not polish.trigger:
            return part
        return (
            polish.template.replace("{trigger}", polish.trigger).replace("{caption}", part) if part else polish.trigger
        )

    if _fits(whole(caption)):
        return Finished(whole(caption), pruned)
    words = caption.split(" ")
    fits, too_many = 0, len(words)
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if _fits(whole(" ".join(words[:middle]))):
            fits = middle
        else:
            too_many = middle
    return Finished(whole(tidy(" ".join(words[:fits]))), pruned, shortened=True)


def _fits(prompt: str) -> bool:
    return count_tokens([prompt])[0] <= LIMIT


def _added(before: str, new: str) -> str:
    return f"{before.rstrip(' ,.')}, {new}" if new else before


def _replaced(text: str, old: str, new: str) -> str:
    """Whole words only, whatever the capitals; what stood around a removed phrase closes up."""
    pattern = rf"(?<!\w){re.escape(old)}(?!\w)"
    changed = re.sub(pattern, lambda _: new, text, flags=re.IGNORECASE)
    return changed if changed == text or new else tidy(changed)


def _unrepeated(caption: str, before: str) -> str:
    """Each part between commas once, and none that stands in `before` already."""
    seen = {part.strip().lower() for part in before.split(",")}
    kept = []
    for part in caption.split(","):
        if part.strip().lower() not in seen:
            seen.add(part.strip().lower())
            kept.append(part)
    return ",".join(kept).strip()
