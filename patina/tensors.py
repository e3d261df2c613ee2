"""Saving tensors so that a failing disk is an OSError, as for every other file."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def size_of(tensors: Mapping[str, Tensor]) -> int:
    """Bytes that they take in a file, without its header."""
    return sum(tensor.nbytes for tensor in tensors.values())


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file; raises OSError where that fails."""
    with ByRust(path):
        save_file(dict(tensors), path)


class ByRust:
    """Where a library's Rust writes a file: what the system refuses it wraps in errors of its own, the tokenizers'
    a bare Exception; here it is the system's again."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number and not isinstance(error, OSError):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(self.path)) from error
