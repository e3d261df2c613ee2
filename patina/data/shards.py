"""Cache entries packed by the hundred, in files that are mapped into memory and that processes share."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock
from time import time
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from patina.data.entries import checked, place, read, sealed
from patina.files import replacing
from patina.tensors import save_tensors, size_of

FEWEST = 100
"""Entries in files of their own that are worth a shard."""
LARGE = 256 * 2**20
"""Bytes of tensors that fill a shard: what one packing holds in memory, and needs of the disk beside the entries."""
MANY = 4096
"""Entries that fill a shard however small they are: safetensors reads no header of over 100 MB."""
DAY = 24 * 60 * 60
KEY = re.compile("[0-9a-f]{64}")


class Shards:
    """The entries of a cache folder, packed or in files of their own; threads may share it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: set[Path] = set()
        self._places: defaultdict[str, list[tuple[Any, list[str]]]] = defaultdict(list)
        """Key -> the open shards that hold the entry, and its tensors' names; where one is damaged there are more."""
        self._lock = Lock()
        self.look()

    def look(self) -> None:
        """Read the headers of shards that have come since, and of damaged ones that have been replaced."""
        with self._lock:
            for path in sorted(set(self.folder.glob("shard-*.safetensors")) - self._files):
                self._open(path)

    def _open(self, path: Path) -> None:
        try:
            file = safe_open(path, framework="pt")
        except SafetensorError:
            return
        self._files.add(path)
        names = defaultdict(list)
        for full in file.keys():  # noqa: SIM118, as it is no mapping
            key, _, name = full.partition("/")
            names[key].append(name)
        for key, own in names.items():
            self._places[key].append((file, own))

    def read(self, key: str) -> dict[str, Tensor] | None:
        """The entry's tensors, mapped where they are packed; None where there is none, or where it is damaged.

        A file of its own comes first: it was made anew because what is packed is no longer right.
        """
        for find in (self._alone, self.packed):
            if (tensors := find(key)) is not None:
                return tensors
        self.look()  # another process may just have packed it
        return self.packed(key)

    def packed(self, key: str) -> dict[str, Tensor] | None:
        """As `read`, of the shards alone that were there at the last look."""
        for file, names in self._places.get(key, ()):
            found = checked(lambda file=file, names=names: {name: file.get_tensor(f"{key}/{name}") for name in names})
            if found is not None:
                return found
        return None

    def _alone(self, key: str) -> dict[str, Tensor] | None:
        return read(place(self.folder, key))


def pack(folder: Path) -> None:
    """Put entries that have files of their own into shards, where there are enough of them and there is room.

    May be interrupted, and run by several processes: an entry's own file goes only once a shard on the disk has been
    read back whole.
    """
    shards = Shards(folder)
    _sweep(folder)
    names = (path.stem for path in folder.glob("??/*.safetensors"))
    left = [place(folder, key) for key in sorted(names) if KEY.fullmatch(key)]
    left = [path for path in left if not _known(path, shards)]
    if len(left) < FEWEST or shutil.disk_usage(folder).free < 2 * LARGE:
        return
    for part in _parts(left):
        _write(folder, part)
        shards.look()
        for key, entry in part.items():
            _remove(place(folder, key), entry, shards.packed(key))


def _sweep(folder: Path) -> None:
    """Remove what a killed packing left half-written; other processes may be packing now, and not for a day."""
    for path in folder.glob(".shard-*.part"):
        with suppress(FileNotFoundError):
            if time() - path.stat().st_mtime > DAY:
                path.unlink()


def _known(path: Path, shards: Shards) -> bool:
    """Whether a shard holds an entry of this key. Where it is the file's the file goes; else it stays, and counts."""
    packed = shards.packed(path.stem)
    if packed is not None:
        _remove(path, read(path), packed)
    return packed is not None


def _remove(path: Path, own: dict[str, Tensor] | None, packed: dict[str, Tensor] | None) -> None:
    """Remove an entry's own file where what has been read back from a shard is the same."""
    if own and packed and own.keys() == packed.keys() and all(torch.equal(own[name], packed[name]) for name in own):
        path.unlink(missing_ok=True)


def _parts(paths: Iterable[Path]) -> Iterator[dict[str, dict[str, Tensor]]]:
    """What one shard after another is to hold, by key, in one dict that is filled anew.

    Left out are damaged entries, and those that another process has just packed.
    """
    part, size = {}, 0
    for path in paths:
        if (tensors := read(path)) is not None:
            part[path.stem] = tensors
            size += size_of(tensors)
        if size >= LARGE or len(part) == MANY:
            yield part
            part.clear()  # before the next is read: one part at a time in memory
            size = 0
    if part:
        yield part


def _write(folder: Path, part: Mapping[str, Mapping[str, Tensor]]) -> None:
    digest = hashlib.sha256("".join(part).encode()).hexdigest()
    tensors = {f"{key}/{name}": tensor for key, entry in part.items() for name, tensor in sealed(entry).items()}
    with replacing(folder / f"shard-{digest}.safetensors") as new:
        save_tensors(tensors, new)
