"""The header of a safetensors file: which tensors it holds, read without their bytes and checked before they are."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from patina.errors import PatinaError

MAX_HEADER = 100_000_000
"""Bytes; the safetensors format's own limit."""
PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04")
"""How pickles begin, in a zip archive as torch.save writes them or bare. As a length these bytes are absurd."""
BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8", "U8", "BOOL"), 1),
}
"""Bytes that a number of each type takes."""


class Entry(NamedTuple):
    """One tensor of a file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    """First byte, counted from the end of the header."""
    end: int


@dataclass(frozen=True)
class Header:
    """What a sound file's header says."""

    tensors: dict[str, Entry]
    metadata: dict[str, str]
    start: int
    """Where in the file the header ends and the tensors begin."""
    raw: dict[str, Any]
    """The JSON as it stands, `__metadata__` included."""


def read_header(path: Path) -> Header:
    """Read a header and check that its tensors fill the file, each byte belonging to one of them.

    Raises PatinaError for a file that is missing, a pickle, cut short, or whose header is not one of this format.
    """
    if not path.is_file():
        raise PatinaError(f"{path}: there is no such file; check the path")
    size = path.stat().st_size
    raw, start = _read(path, size)
    metadata = raw.get("__metadata__", {})
    tensors = {name: _entry(path, name, value) for name, value in raw.items() if name != "__metadata__"}
    if not (isinstance(metadata, dict) and all(isinstance(text, str) for text in metadata.values())):
        raise _damaged(path, "its metadata are not texts")
    _check_offsets(path, tensors, size - start)
    return Header(tensors, metadata, start, raw)


def _read(path: Path, size: int) -> tuple[dict[str, Any], int]:
    with path.open("rb") as file:
        first = file.read(8)
        length = int.from_bytes(first, "little")
        if size < 8 or length > min(size - 8, MAX_HEADER):
            raise _no_header(path, size, first)
        text = file.read(length)
    try:
        raw = json.loads(text, object_pairs_hook=_pairs)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"it is not JSON ({error})") from error
    if not isinstance(raw, dict):
        raise _damaged(path, "it is no JSON object")
    return raw, 8 + length


def _no_header(path: Path, size: int, first: bytes) -> PatinaError:
    if first.startswith(PICKLES):
        return PatinaError(
            f"{path}: this is a pickle (as .ckpt, .pt and .bin files are) and no safetensors file, whatever its name "
            f"says; a base model is converted by: python tools/lora.py convert-base {path} NEW.safetensors"
        )
    return PatinaError(f"{path}: not a whole safetensors file ({size} bytes); write or download it again")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("one name occurs twice")
    return found


def _entry(path: Path, name: str, value: Any) -> Entry:
    try:
        dtype, shape, (begin, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise _damaged(path, f"tensor {name} has no type, shape or place") from error
    if not (isinstance(dtype, str) and all(type(number) is int and number >= 0 for number in (*shape, begin, end))):
        raise _damaged(path, f"tensor {name} has no sound type, shape or place")
    if dtype not in BYTES:
        raise PatinaError(f"{path}: tensor {name} is of the type {dtype}, which is unknown here; save it as fp16")
    if end - begin != math.prod(shape) * BYTES[dtype]:
        raise _damaged(path, f"tensor {name} of shape {list(shape)} does not fit into {end - begin} bytes")
    return Entry(dtype, shape, begin, end)


def _check_offsets(path: Path, tensors: dict[str, Entry], size: int) -> None:
    place, before = 0, "the header"
    for name, entry in sorted(tensors.items(), key=lambda item: item[1][2:]):
        if entry.begin < place:
            raise _damaged(path, f"tensors {before} and {name} overlap")
        if entry.begin > place:
            raise _damaged(path, f"{entry.begin - place} bytes before tensor {name} belong to none")
        place, before = entry.end, name
    if place != size:
        raise PatinaError(
            f"{path}: not a sound safetensors file ({size} bytes of tensors where its header says {place}); "
            "write or download it again"
        )


def _damaged(path: Path, why: str) -> PatinaError:
    return PatinaError(f"{path}: its safetensors header is damaged: {why}; write or download it again")
