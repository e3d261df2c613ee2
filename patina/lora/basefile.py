"""Where a checkpoint on the disk keeps the layers that LoRA changes: a single file in LDM layout, or a folder."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from patina.bases import signs
from patina.bases.find import folder_family
from patina.bases.signs import UNET
from patina.errors import PatinaError
from patina.lora.blocks import LAYOUTS, Layout, layers, open_clip
from patina.lora.names import Place
from patina.lora.stream import TensorFile, open_tensors, read, shape

CLIP = {
    "cond_stage_model.transformer.text_model.": "text_encoder",
    "cond_stage_model.transformer.": "text_encoder",
    "conditioner.embedders.0.transformer.text_model.": "text_encoder",
}
"""How LDM checkpoints begin the keys of a text encoder that is transformers' -> component."""
OPEN_CLIP = {
    "cond_stage_model.model.transformer.": "text_encoder",
    "conditioner.embedders.1.model.transformer.": "text_encoder_2",
}
"""The same for a text encoder that is open_clip's."""


class Slot(NamedTuple):
    """A layer's weight in a checkpoint."""

    file: TensorFile
    key: str
    third: int | None
    """Which third of its rows, where query, key and value are one tensor; None: all."""

    def weight(self) -> Tensor:
        """The layer's own weight, in the checkpoint's dtype."""
        tensor = read(self.file, self.key)
        return tensor if self.third is None else tensor.chunk(3)[self.third]

    def shape(self) -> torch.Size:
        rows, *rest = shape(self.file, self.key)
        return torch.Size([rows if self.third is None else rows // 3, *rest])


class Base(NamedTuple):
    """A checkpoint of which the headers have been read."""

    path: Path
    family: str
    files: tuple[TensorFile, ...]
    slots: Mapping[Place, Slot]
    """By layer; a text encoder's path is without `text_model.`."""


def open_base(path: Path) -> Base:
    """Read a checkpoint's headers: a `.safetensors` file in LDM layout, or a folder in diffusers layout.

    Raises PatinaError for what is missing, damaged, or no checkpoint of Stable Diffusion 1.x, 2.x or XL.
    """
    if path.is_dir():
        return _folder(path)
    file = open_tensors(path)
    if not all(any(key.startswith(start) for key in file.entries) for start in (UNET, (*CLIP, *OPEN_CLIP))):
        raise PatinaError(
            f"{path}: no checkpoint of Stable Diffusion 1.x, 2.x or XL in LDM layout (UNet and text encoder in one "
            "file); give such a file, or a folder in diffusers layout"
        )
    family = signs.family_of({key: shape(file, key) for key in file.entries})
    slots = {place: slot for place in _places(LAYOUTS[family]) if (slot := _ldm_slot(file, family, place))}
    return Base(path, family, (file,), slots)


def _folder(path: Path) -> Base:
    found = {
        component: [open_tensors(file) for file in sorted((path / component).glob("*.safetensors"))]
        for component in ("unet", "text_encoder", "text_encoder_2")
    }
    if not found["unet"]:
        raise PatinaError(f"{path}: holds no unet/*.safetensors; give a folder in diffusers layout with safetensors")
    family = folder_family(path)
    slots = {}
    for place in _places(LAYOUTS[family]):
        for file in found[place.component]:
            for key in (f"{place.path}.weight", f"text_model.{place.path}.weight"):
                if key in file.entries:
                    slots.setdefault(place, Slot(file, key, None))
    return Base(path, family, tuple(file for files in found.values() for file in files), slots)


def _places(layout: Layout) -> Iterator[Place]:
    return (Place(component, path) for component, found in layers(layout).items() for path in found)


def _ldm_slot(file: TensorFile, family: str, place: Place) -> Slot | None:
    if place.component == "unet":
        keys = [(f"{UNET}{LAYOUTS[family].ldm(place.path)}.weight", None)]
    else:
        keys = [(f"{start}{place.path}.weight", None) for start, part in CLIP.items() if part == place.component]
        fused = open_clip(place.path)
        joint = "_weight" if fused.third is not None else ".weight"
        keys += [
            (f"{start}{fused.path}{joint}", fused.third) for start, part in OPEN_CLIP.items() if part == place.component
        ]
    return next((Slot(file, key, third) for key, third in keys if key in file.entries), None)
