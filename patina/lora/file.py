"""Write a LoRA as the `.safetensors` file that web UIs read, and read it back (kohya's grammar)."""

import hashlib
import json
import math
import shutil
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from patina.errors import PatinaError
from patina.family import Family
from patina.files import replacing, require_room
from patina.lora import forms
from patina.lora.forms import MAGNITUDE, Parts, folded
from patina.lora.names import ALPHA, DOWN, IN_FILE, UP, Place, by_place, file_key, siblings
from patina.safeheader import read_header
from patina.tensors import save_tensors, size_of

LEGACY_START, LEGACY_END = 0x100000, 0x110000
"""Bytes of a file that the web UI's oldest hash covers."""


class Layer(NamedTuple):
    """One layer as it stands in a file: its weight grows by alpha / rank * up @ down."""

    down: Tensor
    """[r,in] or [r,in,k,k]."""
    up: Tensor
    """[out,r] or [out,r,1,1]."""
    alpha: float


class LoraFile(NamedTuple):
    """A file's layers by their names in it, and its header's texts."""

    layers: dict[str, Layer]
    metadata: dict[str, str]


def write(
    path: Path,
    state: Mapping[str, Tensor],
    family: Family,
    alpha: float,
    dtype: torch.dtype,
    metadata: Mapping[str, str],
) -> None:
    """Write weights named as `inject.state` names them, complete or not at all; all tensors, alphas too, in `dtype`.

    They must be such that `forms.scale` with `alpha` is right for each layer, as `pack.packed` makes them. Where one
    of a group of siblings is trained (see `Family.together`), the others are written as zeros. The header holds
    `metadata` in its order, after `sshs_model_hash` and `sshs_legacy_hash`. Equal arguments give equal bytes. Raises
    PatinaError when `dtype` cannot hold alpha.
    """
    write_tensors(path, _tensors(state, family, alpha, dtype), metadata)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors as they are, complete or not at all, under a header with `metadata` after the two hashes.

    Raises PatinaError where the disk has too little room.
    """
    require_room(path.parent, 2 * size_of(tensors))  # the file and the one it is made from
    with replacing(path) as part, tempfile.TemporaryDirectory(dir=part.parent, prefix=".lora-") as scratch:
        bare = Path(scratch) / "bare"
        save_tensors(tensors, bare)
        _add_metadata(bare, part, metadata)


def read(path: Path) -> LoraFile:
    """Read a file in the grammar that `write` has; tensors on the CPU in the file's dtype.

    Raises PatinaError for a file that is missing, cut short, not safetensors, or that holds other tensors than
    lora_down, lora_up and alpha for each layer.
    """
    parts, metadata = read_parts(path)
    layers = {}
    for name, found in parts.items():
        for part in found:
            if part not in (DOWN, UP, ALPHA):
                raise PatinaError(
                    f"{path}: tensor {name}.{part} is no plain LoRA's; each layer has {DOWN}, {UP} and {ALPHA}"
                )
        layers[name] = _layer(path, name, found)
    return LoraFile(layers, metadata)


def read_parts(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]]:
    """A file's tensors, layer -> name after the key's first dot -> tensor, and its header's texts.

    Raises PatinaError for a file that is missing, cut short or not safetensors; what the tensors are is not looked at.
    """
    header = read_header(path)
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise PatinaError(f"{path}: not a sound safetensors file ({error}); write or download it again") from error
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, part = key.partition(".")
        parts.setdefault(name, {})[part] = tensor
    return parts, header.metadata


def payload_sha256(path: Path) -> str:
    """SHA-256 of the bytes after a file's header, streamed: what `sshs_model_hash` and Civitai's AutoV3 are."""
    start = read_header(path).start
    with path.open("rb") as file:
        file.seek(start)
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tensors(state: Mapping[str, Tensor], family: Family, alpha: float, dtype: torch.dtype) -> dict[str, Tensor]:
    stored = torch.tensor(alpha, dtype=dtype)
    if not (math.isfinite(stored.item()) and stored > 0):
        raise PatinaError(
            f"lora_alpha {alpha} is {stored.item()} in {dtype}; write a number above 0 that {dtype} holds"
        )
    tensors = {}
    for place, parts in sorted(_with_siblings(by_place(state), family).items()):
        name = file_key(family, place)
        # 2.7 is 2.703 in bf16: what readers then scale by too much is taken out of one factor
        exact = folded(parts, forms.scale(parts, alpha) / forms.scale(parts, stored.item()))
        tensors |= {f"{name}.{IN_FILE[part]}": _plain(tensor, dtype) for part, tensor in exact.items()}
        tensors[f"{name}.{ALPHA}"] = stored.clone()  # safetensors refuses one tensor under two names
    return tensors


def _plain(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to("cpu", dtype, copy=True).contiguous()


def _with_siblings(trained: Mapping[Place, Parts], family: Family) -> dict[Place, Parts]:
    zeros = {
        sibling: {name: torch.zeros_like(part) for name, part in parts.items() if name != MAGNITUDE}
        for place, parts in trained.items()
        for sibling in siblings(family, place)
    }
    return zeros | dict(trained)


def _add_metadata(bare: Path, target: Path, metadata: Mapping[str, str]) -> None:
    """Copy a file, its header replaced by one with metadata, hashes of the payload included.

    The header is our own writing because the library shuffles the entries of `__metadata__` from run to run.
    """
    header = read_header(bare)
    kohya = {key: text for key, text in metadata.items() if key.startswith("ss_")}
    hashes = {
        "sshs_model_hash": payload_sha256(bare),
        "sshs_legacy_hash": _legacy_hash(_packed(header.raw, kohya), bare, header.start),
    }
    with bare.open("rb") as source, target.open("wb") as out:
        source.seek(header.start)
        others = {key: text for key, text in metadata.items() if key not in hashes}
        out.write(_packed(header.raw, hashes | others))
        shutil.copyfileobj(source, out)


def _packed(entries: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """A header's bytes: its length in 8 bytes, then JSON, padded so that the tensors start at a multiple of 8."""
    text = json.dumps({"__metadata__": dict(metadata), **entries}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _legacy_hash(header: bytes, bare: Path, start: int) -> str:
    """First 8 hex digits of the SHA-256 of bytes 0x100000 to 0x110000 of the file that has this header.

    As sd-scripts computes it: of a file with the `ss_` entries alone, so that the finished file does not show it.
    """
    skip = LEGACY_START - len(header)
    with bare.open("rb") as file:
        file.seek(start + max(skip, 0))
        covered = header[LEGACY_START:] + file.read(LEGACY_END - LEGACY_START)
    return hashlib.sha256(covered[: LEGACY_END - LEGACY_START]).hexdigest()[:8]


def _layer(path: Path, name: str, parts: Mapping[str, Tensor]) -> Layer:
    missing = [part for part in (DOWN, UP, ALPHA) if part not in parts]
    if missing:
        raise PatinaError(f"{path}: {name} has no {missing[0]}; export the file again")
    down, up, alpha = parts[DOWN], parts[UP], parts[ALPHA]
    if alpha.numel() != 1 or down.ndim != up.ndim or down.ndim not in (2, 4) or down.shape[0] != up.shape[1]:
        shapes = f"{list(down.shape)}, {list(up.shape)} and {list(alpha.shape)}"
        raise PatinaError(f"{path}: {name} has tensors of shapes {shapes}, which are no LoRA's; export the file again")
    return Layer(down, up, alpha.item())
