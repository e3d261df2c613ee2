"""Turning a pickled checkpoint into a safetensors file, without running anything that the pickle asks for."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patina.errors import PatinaError
from patina.files import replacing
from patina.safeheader import PICKLES, read_header
from patina.tensors import save_tensors

HARMLESS = ("pytorch_lightning.", "lightning.", "lightning_fabric.")
"""Trainers whose notes lie beside the weights in old checkpoints. An empty class stands in for theirs."""


class Ignored:
    """What a trainer left in a checkpoint: made of nothing, and dropped."""

    def __setstate__(self, state: object) -> None:
        pass


def convert(src: Path, dst: Path, force: bool = False) -> int:
    """Write the tensors of a pickle (`.ckpt`, `.pt`, `.pth`, `.bin`) as `dst` and return how many.

    Names, shapes, types and bits stay as they are; what lies beside the weights is dropped. torch's restricted
    unpickler reads it, and maps the file where its format allows that. Raises PatinaError when `dst` is there and
    `force` is not given, and for a file that is damaged, holds no weights, or asks for any class that weights need not.
    """
    if dst.suffix != ".safetensors":
        raise PatinaError(f"{dst}: the new file must end in .safetensors; write {dst.with_suffix('.safetensors')}")
    if dst.exists() and not force:
        raise PatinaError(f"{dst} is there already; choose another name, or add --force to replace it")
    tensors = _apart(_tensors(_unpickled(src)))
    if not tensors:
        raise PatinaError(f"{src} holds no weights; give a model's checkpoint")
    with replacing(dst) as part:
        save_tensors(tensors, part)
    return len(tensors)


def _unpickled(src: Path) -> Any:
    if not src.is_file():
        raise PatinaError(f"{src}: there is no such file; check the path")
    zipped = zipfile.is_zipfile(src)
    misnamed = src.suffix == ".safetensors"  # torch goes by this name, whatever the file is
    if misnamed and not zipped:
        _refuse_safetensors(src)
    try:
        with torch.serialization.safe_globals(_stand_ins(src) if zipped else []), src.open("rb") as file:
            source = file if misnamed else src
            return torch.load(source, map_location="cpu", weights_only=True, mmap=zipped and not misnamed)
    except pickle.UnpicklingError as error:
        raise PatinaError(
            f"{src} asks for more than weights when it is opened, or is damaged ({_first_line(error)}); nothing of it "
            "was run: look for a .safetensors of this model"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise PatinaError(
            f"{src} is damaged or no torch checkpoint ({_first_line(error)}); download it again"
        ) from error


def _refuse_safetensors(src: Path) -> None:
    """Raise PatinaError for a file that is what it is called, or a damaged one; a bare pickle passes."""
    with src.open("rb") as file:
        if file.read(2) in PICKLES[1:]:
            return
    read_header(src)
    raise PatinaError(f"{src} is a safetensors file already; it needs no converting")


def _stand_ins(src: Path) -> list[Any]:
    asked = torch.serialization.get_unsafe_globals_in_checkpoint(src)
    return [(Ignored, name) for name in asked if name.startswith(HARMLESS)]


def _tensors(loaded: Any) -> dict[str, Tensor]:
    """The weights; trainers put them under `state_dict`, sometimes more than once."""
    while isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping):
        return {}
    return {name: value for name, value in loaded.items() if isinstance(name, str) and isinstance(value, Tensor)}


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous, and none sharing memory with another, which safetensors files cannot express."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        plain = tensor.detach()
        whole = plain.is_contiguous() and plain.untyped_storage().nbytes() == plain.nbytes
        place = plain.untyped_storage().data_ptr()
        apart[name] = plain if whole and place not in seen else plain.contiguous().clone()
        seen.add(place)
    return apart


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
