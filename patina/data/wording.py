"""What a picture's caption says each time it is shown: one of its lines, its tags in another order, some or all of
them left out."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from patina.configdata import Dataset

MARK = "[trigger]"
"""Where it stands in a caption the trigger word goes, and not in front."""
SEPARATOR = "|||"
"""Tags before it stay in the place of `Wording.keep`, tags after a second one stay at the end. It is never said."""
WILDCARD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
"""`{a|b}`, and the doubled braces that stand for themselves."""

Choose = Callable[[list[str]], str]


class Wording(NamedTuple):
    """How captions change. Tags are what stands between commas."""

    shuffle: bool = False
    keep: int = 0
    """Tags at the beginning, after a trigger word there, that stay where they are and are never left out."""
    tag_dropout: float = 0.0
    """How likely each other tag is left out."""
    caption_dropout: float = 0.0
    """How likely the whole caption is."""
    dropout_every: int = 0
    """Every so many epochs all captions are left out; 0: never."""
    wildcards: bool = False
    trigger: str = ""

    @property
    def varies(self) -> bool:
        """Whether a caption can become more than its lines and nothing: too much to be encoded beforehand."""
        return self.loosens or self.wildcards

    @property
    def loosens(self) -> bool:
        """Whether a caption's tags are moved or left out."""
        return self.shuffle or self.tag_dropout > 0


AS_WRITTEN = Wording()


def wording_of(dataset: Dataset, trigger: str | None) -> Wording:
    """How captions change from one showing to the next, as the config says."""
    return Wording(
        dataset.shuffle_tags,
        dataset.keep_tags,
        dataset.tag_dropout,
        dataset.caption_dropout,
        dataset.caption_dropout_every_epochs,
        dataset.wildcards,
        trigger or "",
    )


def told(text: str, lines: str, trigger: str | None) -> str:
    """The lines of a caption that are trained on, by `dataset.caption_lines`, each with the trigger word in front.

    A line that says with `[trigger]` where the word goes has it there alone.
    """
    found = written_lines(text)
    chosen = {"first": found[:1], "random": found, "joined": [", ".join(found)]}[lines]
    return "\n".join(line if MARK in line else with_trigger(trigger or "", line) for line in chosen)


def written_lines(text: str) -> list[str]:
    """The captions that a text holds, one a line."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def notes(texts: Sequence[str], lines: str, trigger: str | None) -> list[str]:
    """What a user should know of how captions, as written, are read."""
    several = sum(len(written_lines(text)) > 1 for text in texts)
    marked = sum(MARK in text for text in texts)
    said = []
    if several and lines == "first":
        said.append(
            f"{several} of {len(texts)} captions have several lines, and only the first is trained on; "
            "for the others write dataset.caption_lines: random, or joined"
        )
    if marked and not trigger:
        said.append(f"{marked} of {len(texts)} captions hold {MARK}, but there is no trigger_word to put there")
    return said


def say(caption: str, wording: Wording, seed: int, epoch: int, place: int) -> str:
    """One of the lines that `told` gave, as one showing of its picture has it; epoch and place count from 0.

    Draws are made whether or not they are used, so that one setting does not change another's.
    """
    random, choices = Random(f"wording {seed} {epoch} {place}"), Random(f"choices {seed} {epoch} {place}")
    nothing = random.random() < wording.caption_dropout
    text = _chosen(caption, wording, choices.choice)
    first, others, last = _parted(text, wording)
    stays = [random.random() >= wording.tag_dropout for _ in others]
    if wording.shuffle:
        random.shuffle(others)
    if nothing or (wording.dropout_every and (epoch + 1) % wording.dropout_every == 0):
        return ""
    if wording.loosens:
        left = [tag for tag, stay in zip(others, stays, strict=True) if stay or MARK in tag]
        text = ", ".join([*first, *left, *last])
    return _finished(text, wording)


def plain(caption: str, wording: Wording) -> str:
    """The first of `told`'s lines with nothing drawn: every wildcard's first choice, and all tags in order."""
    return _finished(_chosen(caption, wording, lambda options: options[0]), wording)


def possible(caption: str, wording: Wording) -> list[str]:
    """All that `say` can make of a caption, but for nothing at all, where the wording does not vary."""
    return [plain(line, wording) for line in caption.split("\n")]


def with_trigger(trigger: str, caption: str) -> str:
    """The caption with the trigger word in front, once; a caption that begins with it is left alone."""
    if not trigger or has_trigger(trigger, caption):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def has_trigger(trigger: str, caption: str) -> bool:
    """Whether the caption begins with the trigger as a whole word; CLIP reads capitals and small letters alike."""
    return re.match(rf"{re.escape(trigger)}(?!\w)", caption, re.IGNORECASE) is not None


def _chosen(caption: str, wording: Wording, choose: Choose) -> str:
    line = choose(caption.split("\n"))
    if not wording.wildcards:
        return line
    return WILDCARD.sub(lambda found: found[0][0] if found[1] is None else choose(found[1].split("|")), line)


def _parted(text: str, wording: Wording) -> tuple[list[str], list[str], list[str]]:
    """The tags that stay in front, those that may move or be left out, and those that stay at the end."""
    head, *rest = text.split(SEPARATOR, 2)
    if rest:
        return _tags(head), _tags(rest[0]), _tags("".join(rest[1:]))
    tags, leads = _tags(text), wording.trigger and has_trigger(wording.trigger, text)
    kept = wording.keep + (len(_tags(wording.trigger)) if leads else 0)
    return tags[:kept], tags[kept:], []


def _tags(text: str) -> list[str]:
    return [tag.strip() for tag in text.split(",") if tag.strip()]


def _finished(text: str, wording: Wording) -> str:
    if SEPARATOR in text:
        text = ", ".join(tag for part in text.split(SEPARATOR, 2) for tag in _tags(part))
    return text.replace(MARK, wording.trigger) if wording.trigger else text
