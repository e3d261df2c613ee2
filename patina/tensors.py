"""Saving tensors so that a failing disk is an OSError, as for every other file."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def size_of(tensors: Mapping[str, Tensor]) -> int:
    """Bytes that they take in a file, without its header."""
    return sum(tensor.nbytes for tensor in tensors.values())


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file. The library wraps a full disk in an error of its own; here it is the system's."""
    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
