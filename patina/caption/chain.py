"""Backends one after the other: taggers look first, and what they found joins the question to the last."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from patina.caption.captioner import Asked, Caption, Captioner

if TYPE_CHECKING:
    import torch


class Chain:
    """A captioner made of taggers and one that can be asked."""

    kind: Literal["caption", "tags"] = "caption"

    def __init__(self, taggers: Sequence[Captioner], writer: Asked) -> None:
        self._taggers, self._writer = tuple(taggers), writer
        self.name = ", then ".join(one.name for one in (*taggers, writer))

    def load(self, device: torch.device, dtype: torch.dtype) -> None:
        """Load them all. Raises PatinaError."""
        for one in (*self._taggers, self._writer):
            one.load(device, dtype)

    def prepare(self, image: Image.Image) -> list[Any]:
        """One RGB picture as each of them wants it."""
        return [one.prepare(image) for one in (*self._taggers, self._writer)]

    def generate(self, batch: Sequence[list[Any]]) -> list[Caption]:
        """The last one's captions."""
        *looked, asked = zip(*batch, strict=True)
        found = [tagger.generate(pictures) for tagger, pictures in zip(self._taggers, looked, strict=True)]
        hints = [", ".join(caption.text for caption in row if caption.text) for row in zip(*found, strict=True)]
        return self._writer.generate(asked, hints)

    def fingerprint(self) -> str:
        """Twelve hex digits that change with any of them."""
        told = " ".join(one.fingerprint() for one in (*self._taggers, self._writer))
        return hashlib.sha256(told.encode()).hexdigest()[:12]
