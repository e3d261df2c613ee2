"""The pictures of a run's folder with their captions: a flat folder, or kohya's subfolders named by their repeats."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from patina.data.captions import FOUND, SIDECARS, Captioned, find_captions
from patina.data.images import find_images, mask_file, natural_key, pictures_in
from patina.errors import PatinaError
from patina.files import there

NAMED = re.compile(r"([1-9]\d{0,5})_(.+)")
"""Repeats and name, as sd-scripts takes them from a folder."""
BELOW = "move them up, or name their folders as 10_NAME: times an epoch, and the caption of pictures that have none"
REMEDY = "move the former into a folder of their own, named as 10_NAME"


class Part(NamedTuple):
    """Pictures that are shown equally often."""

    folder: Path
    images: list[Path]
    repeats: int
    caption: str
    """Of pictures that have none; empty: they are left out."""


def captioned_pictures(
    folder: Path, metadata_path: Path | None, tell: Callable[[str], object], allow_links: bool = False
) -> list[Captioned]:
    """The pictures of a folder that have a caption, each with its repeats; `tell` is told what is left out.

    Names in a table are relative to `folder`, of which also a picture elsewhere below it may be named. Raises
    PatinaError as `find_images` and `find_captions` do, and for links out of `folder` unless `allow_links`.
    """
    parts = find_parts(folder, tell)
    by_picture = {image: part for part in parts for image in part.images}
    if not allow_links:
        _refuse_links(read_unasked(list(by_picture), folder), folder)
    names = {image: part.caption for image, part in by_picture.items() if part.caption}
    captioned, without = find_captions(list(by_picture), folder, metadata_path, tell, names)
    if not allow_links:
        _refuse_links([pair.path for pair in captioned], folder)
    if without:
        listed = ", ".join(path.name for path in without[:3]) + (", ..." if len(without) > 3 else "")
        tell(f"{len(without)} of {len(by_picture)} pictures have no caption and are left out: {listed}")
    whole = Part(folder, [], 1, "")
    found = [(pair, by_picture.get(pair.path, whole)) for pair in captioned]
    return [replace(pair, folder=part.folder, repeats=part.repeats) for pair, part in found]


def read_unasked(images: list[Path], folder: Path) -> list[Path]:
    """The files among the pictures that are read without being named anywhere."""
    beside = [image.with_suffix(suffix) for image in images for suffix in SIDECARS]
    beside += [mask_file(image) for image in images]
    return [*images, *(path for path in (*beside, *(folder / name for name in FOUND)) if there(path))]


def _refuse_links(paths: list[Path], folder: Path) -> None:
    if out := leading_out(paths, folder):
        more = f", and {len(out) - 1} more do" if len(out) > 1 else ""
        raise PatinaError(
            f"{out[0]}: is a link, or lies in one, that leads out of {folder}{more}; put the files themselves there, "
            "or write dataset.allow_links: true"
        )


def leading_out(paths: list[Path], folder: Path) -> list[Path]:
    """Those that are links, or lie in one, to somewhere outside the folder."""
    home = folder.resolve()
    return [path for path in paths if not path.resolve().is_relative_to(home)]


def find_parts(folder: Path, tell: Callable[[str], object] = str) -> list[Part]:
    """The folder itself where it holds pictures, else its subfolders named as `10_NAME` that do.

    Raises PatinaError where there is no picture in either.
    """
    folders = [path for path in folder.glob("[!.]*") if path.is_dir()]
    below = sorted(folders, key=lambda path: natural_key(path.name))
    held = {path: pictures_in(path) for path in below}
    named = {path: match for path in below if (match := NAMED.fullmatch(path.name))}
    if pictures_in(folder) or not any(held[path] for path in named):
        if ignored := [path.name for path in named if held[path]]:
            tell(f"{folder}: holds pictures itself, so that those in {', '.join(ignored)} are left out; {REMEDY}")
        return [Part(folder, find_images(folder, below=BELOW), 1, "")]
    if empty := [path.name for path in named if not held[path]]:
        tell(f"{folder}: no picture lies in {', '.join(empty)}")
    if other := [path.name for path in below if held[path] and path not in named]:
        tell(f"{folder}: the pictures in {', '.join(other)} are left out, as its name is not like 10_NAME")
    parts = [Part(path, held[path], int(match[1]), match[2].strip()) for path, match in named.items() if held[path]]
    listed = ", ".join(f"{part.folder.name} ({len(part.images)})" for part in parts)
    tell(
        f"{folder}: pictures of {listed}; the names give the times an epoch, and the caption of pictures that have none"
    )
    return parts
