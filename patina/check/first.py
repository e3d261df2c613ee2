"""What is seen of a set of pictures in the first second of a training: the trouble that costs whole runs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path

from patina.check.looks import MUCH, is_small, loses_much
from patina.check.wording import further_on, repeated, styled
from patina.data.buckets import Buckets, Size, fit, growth
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


TROUBLES = {
    "twice": (
        "1 picture is there twice ({names}): delete one of the two",
        "{number} pictures are there twice ({names}): delete one of each",
    ),
    "bare": (
        "1 picture has no caption of its own ({names}): write what is in it",
        "{number} pictures have no caption of their own ({names}): write what is in them",
    ),
    "alike": (
        "1 picture is captioned as another is ({names}): say what tells them apart",
        "{number} pictures are captioned as another is ({names}): say what tells them apart",
    ),
    "style": (
        "1 picture has words of style in its caption ({names}): leave those out",
        "{number} pictures have words of style in their captions ({names}): leave those out",
    ),
    "trigger": (
        "1 picture has the trigger word again further on in its caption ({names}): leave it to the front alone",
        "{number} pictures have the trigger word again further on in their captions ({names}): "
        "leave it to the front alone",
    ),
    "small": (
        "1 picture has less than half of the resolution's pixels ({names}): find a larger one",
        "{number} pictures have less than half of the resolution's pixels ({names}): find larger ones",
    ),
    "enlarged": (
        f"1 picture is enlarged more than {GROWN:g} times ({{names}}): find a larger one",
        f"{{number}} pictures are enlarged more than {GROWN:g} times ({{names}}): find larger ones",
    ),
    "cropped": (
        f"1 picture loses more than {MUCH:.0%} to the shape it is cut to ({{names}}): crop it yourself",
        f"{{number}} pictures lose more than {MUCH:.0%} to the shape they are cut to ({{names}}): crop them yourself",
    ),
    "not read": (
        "1 picture is of a kind that is not read ({names}): save it as PNG",
        "{number} pictures are of kinds that are not read ({names}): save them as PNG",
    ),
}
"""What to say of one picture, and of several; in the order in which it is said."""


def first_look(folder: Path, captioned: Sequence[Captioned], buckets: Buckets, trigger: str | None) -> list[str]:
    """A line for each kind of trouble in the pictures of a folder; none where all is well. Nothing is decoded.

    Of a picture with several captions, one a line, all are looked at. What cannot be read is left to the run, which
    stops there.
    """
    found = {
        "twice": twice([pair.path for pair in captioned], folder),
        **_said(captioned, folder, trigger),
        **_shaped(captioned, folder, buckets),
        "not read": not_read(folder),
    }
    told = [(several if len(found[kind]) > 1 else one, found[kind]) for kind, (one, several) in TROUBLES.items()]
    return [f"look      {line.format(number=len(names), names=_some(names))}" for line, names in told if names]


def _said(captioned: Sequence[Captioned], folder: Path, trigger: str | None) -> dict[str, list[str]]:
    said = {_name(pair.path, folder): dict.fromkeys(pair.caption.split("\n")) for pair in captioned}
    lines = [(name, line) for name, own in said.items() for line in own if line not in ("", trigger)]
    found = {
        "bare": (name for name, own in said.items() if not own.keys() - {"", trigger}),
        "alike": (one.name for one in repeated(lines)),
        "style": (one.name for one in styled(lines[:MOST], trigger)),
        "trigger": (name for name, line in lines if trigger and further_on(trigger, line)),
    }
    return {kind: list(dict.fromkeys(names)) for kind, names in found.items()}


def _shaped(captioned: Sequence[Captioned], folder: Path, buckets: Buckets) -> dict[str, list[str]]:
    """By the heads of the files; the picture that loses most comes first."""
    fits = [(_name(path, folder), fit(size, buckets)) for path, size in _sizes(captioned)]
    return {
        "small": [name for name, how in fits if is_small(how, buckets)],
        "enlarged": [name for name, how in fits if growth(how) > GROWN],
        "cropped": [name for name, how in sorted(fits, key=lambda one: one[1].kept) if loses_much(how)],
    }


def not_read(folder: Path) -> list[str]:
    """Files that other programs know as pictures, by their endings."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in OTHERS and path.is_file())
    return sorted(_name(path, folder) for path in found)


def twice(paths: Iterable[Path], folder: Path) -> list[str]:
    """Those whose bytes an earlier one has, as `later = earlier`; only files of one size are read."""
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
                found.append(f"{_name(path, folder)} = {_name(first, folder)}")
    return found


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
