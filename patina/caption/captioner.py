"""What a model that captions pictures looks like to the rest of the program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from PIL import Image

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Caption:
    """What a model wrote about one picture."""

    text: str
    truncated: bool
    """It ran into the length limit before the model had come to an end."""
    source: str = ""
    """Where it was found, if it was not written just now."""
    styles: tuple[str, ...] = ()
    """Names of styles that the model itself finds most like this picture, best first, where it was asked."""


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


class Asked(Captioner, Protocol):
    """A backend whose question can hold what an earlier backend found."""

    def generate(self, batch: Sequence[Any], hints: Sequence[str] = ()) -> list[Caption]:
        """A caption for each prepared picture, in the same order; `hints` is empty or one text a picture."""
        ...


def choose_device(name: Literal["auto", "cpu", "cuda"]) -> tuple[torch.device, torch.dtype]:
    """As the engine's, with the dtype to caption in there. Raises PatinaError for a GPU that is not there."""
    import torch  # deferred: slow to import, and not every backend computes

    from patina.engine import precision

    device = precision.choose_device(name)
    return device, torch.bfloat16 if device.type == "cuda" else torch.float32
