"""Captions without a model: a text beside the picture, the prompt in it, its file name, else the trigger alone."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from PIL import Image

from patina.caption.captioner import Caption
from patina.caption.embedded import find_prompt
from patina.data.images import ImageError
from patina.data.tables import read_text
from patina.errors import PatinaError
from patina.files import there

if TYPE_CHECKING:
    import torch

SIDECARS = (".txt", ".caption")
CAMERA_NAMES = frozenset(
    {
        "image",
        "img",
        "dsc",
        "dscn",
        "dscf",
        "dcim",
        "photo",
        "pic",
        "picture",
        "screenshot",
        "screen",
        "shot",
        "untitled",
    }
    | {"pxl", "wa", "whatsapp", "download", "unnamed", "copy", "final", "scan", "file", "comfyui", "output", "sample"}
)
"""Words that say where a file came from, not what it shows."""


class OfflineCaptioner:
    """What is known about a picture without looking at it; it needs the file, so `read` and not `prepare` opens it."""

    name = "offline"
    kind: Literal["caption", "tags"] = "caption"

    def load(self, device: torch.device, dtype: torch.dtype) -> None:
        """Nothing to load."""

    def read(self, path: Path) -> Caption:
        """What there is about this file. Raises ImageError where it is no picture, or its text is none."""
        prompt = find_prompt(path)
        return next(
            (Caption(text, truncated=False, source=source) for source, text in _sources(path, prompt) if text),
            Caption("", truncated=False, source="no text: the trigger alone"),
        )

    def prepare(self, image: Image.Image) -> Caption:
        """A picture without its file says nothing."""
        return Caption("", truncated=False)

    def generate(self, batch: Sequence[Caption]) -> list[Caption]:
        """What was read, as it is."""
        return list(batch)

    def fingerprint(self) -> str:
        """Always the same: there are neither weights nor settings."""
        return hashlib.sha256(b"offline").hexdigest()[:12]


def _sources(path: Path, prompt: str) -> list[tuple[str, str]]:
    return [("a text beside it", _sidecar(path)), ("the prompt in it", prompt), ("its file name", words_of(path.stem))]


def _sidecar(path: Path) -> str:
    for suffix in SIDECARS:
        beside = path.with_suffix(suffix)
        if there(beside):
            return next((line.strip() for line in _lines(beside) if line.strip()), "")
    return ""


def _lines(beside: Path) -> list[str]:
    try:
        return read_text(beside).text.splitlines()
    except PatinaError as error:  # one text that cannot be read leaves the other pictures theirs
        raise ImageError(str(error)) from error


def words_of(stem: str) -> str:
    """The words of a file name; empty where it is a camera's count, a date, or digits and letters by chance."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", stem)
    words = [word for word in re.split(r"[\s_\-.,()\[\]+]+", spaced) if word]
    kept = [word.lower() for word in words if word.isalpha() and _speaks(word.lower())]
    return " ".join(kept) if any(len(word) > 2 or not word.isascii() for word in kept) else ""


def _speaks(word: str) -> bool:
    """Whether it may be a word: not a camera's, not hexadecimal, and with a vowel where the letters are Latin."""
    if word in CAMERA_NAMES or (len(word) > 6 and re.fullmatch("[a-f]+", word)):
        return False
    return not word.isascii() or len(word) < 3 or re.search("[aeiouy]", word) is not None
