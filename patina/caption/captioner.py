"""What a model that captions pictures looks like to the rest of the program."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from PIL import Image

from patina.engine import precision


@dataclass(frozen=True)
class Caption:
    """What a model wrote about one picture."""

    text: str
    truncated: bool
    """It ran into the length limit before the model had come to an end."""


class Captioner(Protocol):
    """A backend. `prepare` may run in several threads at once; `generate` is deterministic, whatever the batch."""

    @property
    def name(self) -> str:
        """How messages call the model."""
        ...

    @property
    def kind(self) -> Literal["caption", "tags"]:
        """Whether it writes a sentence or a list of tags."""
        ...

    def load(self, device: torch.device, dtype: torch.dtype) -> None:
        """Bring the weights to the device. Raises PatinaError where they are missing; random weights never run."""
        ...

    def prepare(self, image: Image.Image) -> Any:
        """One RGB picture to what `generate` takes a list of; needs the model loaded."""
        ...

    def generate(self, batch: Sequence[Any]) -> list[Caption]:
        """A caption for each prepared picture, in the same order."""
        ...

    def fingerprint(self) -> str:
        """Twelve hex digits that change with the weights and with every setting that can change a caption."""
        ...


def choose_device(name: Literal["auto", "cpu", "cuda"]) -> tuple[torch.device, torch.dtype]:
    """As the engine's, with the dtype to caption in there. Raises PatinaError for a GPU that is not there."""
    device = precision.choose_device(name)
    return device, torch.bfloat16 if device.type == "cuda" else torch.float32
