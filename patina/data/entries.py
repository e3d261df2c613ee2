"""Entries of a cache on the disk: tensors under a key, with a digest that tells a damaged file from a whole one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from patina.files import replacing
from patina.tensors import save_tensors

DAMAGE = (SafetensorError, KeyError, ValueError, RuntimeError)
"""What safetensors raises on files that are cut short or hold other bytes than were written."""


def place(folder: Path, key: str) -> Path:
    """Where the entry of this key is, in one of 256 folders by its first two digits."""
    return folder / key[:2] / f"{key}.safetensors"


def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write an entry whole or not at all; none of its tensors may be called `digest`."""
    with replacing(path) as part:
        save_tensors(sealed(tensors), part)


def read(path: Path) -> dict[str, Tensor] | None:
    """The entry's tensors; None where there is none, or where it is damaged."""
    return checked(lambda: load(path.read_bytes()))


def sealed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the digest that `checked` compares."""
    return {**tensors, "digest": _digest(tensors)}


def checked(take: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor] | None:
    """What `take` reads of tensors that were `sealed`; None where there are none, or where they are damaged."""
    try:
        tensors = take()
        digest = tensors.pop("digest")
    except FileNotFoundError:
        return None
    except DAMAGE:
        return None
    return tensors if torch.equal(digest, _digest(tensors)) else None


def fingerprint_of(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    """A digest of a model's config, names that begin with _ left out (they tell where it came from), and weights."""
    told = {name: value for name, value in config.items() if not name.startswith("_")}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
    _feed(digest, weights)
    return digest.hexdigest()


def _digest(tensors: Mapping[str, Tensor]) -> Tensor:
    digest = hashlib.sha256()
    _feed(digest, tensors)
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)


def _feed(digest: hashlib._Hash, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
