"""What is seen of a set of pictures in the first second of a training: the trouble that costs whole runs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path

from patina.check.wording import repeated, styled
from patina.data.buckets import Size, fit
from patina.data.captions import Captioned
from patina.data.images import ImageError, picture_size

SHOWN = 3
"""Names that a line has."""
MOST = 2_000
"""Captions that are looked at for words of style: more would take longer than a second."""
DRAWN = (".jp2", ".j2k", ".jxl", ".heic", ".heif", ".psd", ".svg", ".tga", ".ico", ".ppm", ".pgm", ".pbm", ".dds")
OTHERS = frozenset((*DRAWN, ".exr", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".dng"))
"""Endings of pictures that no run opens."""
GROWN = 2.0
"""How many times as wide a picture may become; beyond that it is blurred, and the blur is learned."""


def first_look(folder: Path, captioned: Sequence[Captioned], sizes: Sequence[Size], trigger: str | None) -> list[str]:
    """A line for each kind of trouble in the pictures of a folder; none where all is well. Nothing is decoded.

    What cannot be read is left to the run, which stops there.
    """
    said = {_name(pair.path, folder): pair.caption.split("\n")[0] for pair in captioned}
    bare = [name for name, caption in said.items() if caption in ("", trigger)]
    full = {name: caption for name, caption in said.items() if caption not in ("", trigger)}
    again, style = repeated(full), styled(dict(list(full.items())[:MOST]), trigger)
    kinds = (
        ("are there twice", twice([pair.path for pair in captioned]), "delete one of each"),
        ("have no caption of their own", bare, "write what is in them"),
        ("are captioned as another is", [one.name for one in again], "say what tells them apart"),
        ("have words of style in their captions", [one.name for one in style], "leave those out"),
        (f"are enlarged more than {GROWN:g} times", enlarged(captioned, sizes), "find larger ones"),
        ("are of kinds that are not read", not_read(folder), "save them as PNG"),
    )
    return [
        f"look      {len(names)} pictures {what} ({_some(names)}): {remedy}" for what, names, remedy in kinds if names
    ]


def not_read(folder: Path) -> list[str]:
    """Files that other programs know as pictures, by their endings."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in OTHERS and path.is_file())
    return sorted(_name(path, folder) for path in found)


def twice(paths: Iterable[Path]) -> list[str]:
    """The pictures whose bytes an earlier one has, as `later = earlier`; only files of one size are read."""
    sized: dict[int, list[Path]] = {}
    for path in dict.fromkeys(paths):
        if path.is_file() and os.access(path, os.R_OK):  # the run names what cannot be read
            sized.setdefault(path.stat().st_size, []).append(path)
    found = []
    for alike in sized.values():
        earlier: dict[bytes, Path] = {}
        for path in alike if len(alike) > 1 else ():
            first = earlier.setdefault(sha256(path.read_bytes()).digest(), path)
            if first != path:
                found.append(f"{path.name} = {first.name}")
    return found


def enlarged(captioned: Sequence[Captioned], sizes: Sequence[Size]) -> list[str]:
    """The pictures that are made much larger to fill their bucket, by the heads of the files."""
    return [path.name for path, (width, height) in _sizes(captioned) if _growth((width, height), sizes) > GROWN]


def _growth(size: Size, sizes: Sequence[Size]) -> float:
    wanted = fit(size, sizes).bucket
    return max(wanted[0] / size[0], wanted[1] / size[1])


def _sizes(captioned: Sequence[Captioned]) -> Iterator[tuple[Path, Size]]:
    for pair in captioned:
        try:
            yield pair.path, picture_size(pair.path)
        except ImageError:
            continue


def _name(path: Path, folder: Path) -> str:
    """Told apart from those of other folders below, as kohya's layout has them."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.as_posix()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
