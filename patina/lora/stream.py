"""Safetensors files tensor by tensor, so that a checkpoint takes no more memory than its largest tensor."""

import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from patina.errors import PatinaError
from patina.safeheader import read_header

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""The format's names of those dtypes that weights have."""
CHUNK = 1 << 24


class TensorFile(NamedTuple):
    """A file of which the header alone has been read."""

    path: Path
    entries: Mapping[str, Any]
    """key -> dtype, shape, data_offsets, as in the header."""
    metadata: Mapping[str, str]
    start: int
    """Of the tensors' bytes in the file."""


def open_tensors(path: Path) -> TensorFile:
    """Read a file's header. Raises PatinaError when it is not a sound one."""
    header = read_header(path)
    entries = {key: entry for key, entry in header.raw.items() if key != "__metadata__"}
    return TensorFile(path, entries, header.metadata, header.start)


def shape(file: TensorFile, key: str) -> torch.Size:
    return torch.Size(file.entries[key]["shape"])


def read(file: TensorFile, key: str) -> Tensor:
    """One tensor, on the CPU in its own dtype. Raises PatinaError for numbers that no weight has."""
    entry = file.entries[key]
    if entry["dtype"] not in DTYPES:
        raise PatinaError(f"{file.path}: {key} is of dtype {entry['dtype']}; give a checkpoint in fp16, bf16 or fp32")
    begin, end = entry["data_offsets"]
    with file.path.open("rb") as source:
        source.seek(file.start + begin)
        raw = bytearray(source.read(end - begin))
    return torch.frombuffer(raw, dtype=DTYPES[entry["dtype"]]).view(entry["shape"])


def rewrite(
    file: TensorFile,
    target: Path,
    changed: Callable[[str], Tensor | None],
    metadata: Mapping[str, str],
) -> None:
    """Copy a file to `target`, with `metadata` and with those tensors that `changed` gives instead of its own.

    `changed` is asked for every key in the file's order; what it gives has the old shape and is cast to the old dtype.
    """
    text = json.dumps({"__metadata__": dict(metadata), **file.entries}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    ordered = sorted(file.entries, key=lambda key: file.entries[key]["data_offsets"])
    with file.path.open("rb") as source, target.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for key in ordered:
            begin, end = file.entries[key]["data_offsets"]
            tensor = changed(key)
            if tensor is not None:
                assert tensor.numel() == math.prod(file.entries[key]["shape"]), key
                out.write(_bytes(tensor, file.entries[key]["dtype"]))
                continue
            source.seek(file.start + begin)
            for at in range(begin, end, CHUNK):
                out.write(source.read(min(CHUNK, end - at)))


def _bytes(tensor: Tensor, dtype: str) -> memoryview:
    cast = tensor.to(DTYPES[dtype]).contiguous()
    return cast.flatten().view(torch.uint8).numpy().data
