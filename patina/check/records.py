"""What one look at each picture file leaves: a few numbers, never its pixels."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from patina.data.ahead import ahead
from patina.data.images import DAMAGE, FORMATS, ORIENTATION, SIDEWAYS, ImageError, open_image

EDGE = 256
"""Pixels of the square at which sharpness and contrast are measured, whatever the picture's size."""
SMALL = 16
STEP = 2
"""Grey levels by which neighbours must differ for a bit of the hash: less is what JPEG adds to an even surface."""
SEVERAL = frozenset({"GIF", "WEBP", "PNG", "AVIF", "TIFF"})
"""Formats whose further frames are pictures of their own; those of a phone's JPEG are previews and depth maps."""
MOST_WORKERS = 8


class Record(NamedTuple):
    """A picture that could be read; some 900 bytes, so that 100,000 take 90 MB."""

    path: Path
    size: tuple[int, int]
    """Width and height in pixels, upright."""
    kind: str
    frames: int
    """0 where those behind the first are damaged."""
    looks: int
    """64 bits: where the picture, at 9 x 8 pixels, gets brighter from left to right (dHash, Krawetz 2013)."""
    mirrored: int
    """The same of its mirror image."""
    greys: bytes
    """The picture at 16 x 16 pixels, row by row: what tells pictures of equal outline apart."""
    sharpness: float
    """Variance of the Laplacian of its greys."""
    spread: float
    """Standard deviation of its greys, of 255."""
    digest: bytes
    """SHA-256 of the file."""


def look_all(paths: Sequence[Path]) -> Iterator[tuple[Path, Record | ImageError]]:
    """Each picture looked at once, in order, in threads; the error where one cannot be read."""
    workers = min(os.cpu_count() or 1, MOST_WORKERS)
    with closing(ahead(_look_or_error, paths, workers, 4 * workers)) as looks:
        for path, future in looks:
            yield path, future.result()


def _look_or_error(path: Path) -> Record | ImageError:
    try:
        return look(path)
    except ImageError as error:
        return error


def look(path: Path) -> Record:
    """Decode a picture, small where its format allows it. Raises ImageError."""
    grey = open_image(path, small=EDGE).convert("L")
    with Image.open(path, formats=FORMATS) as image, path.open("rb") as stream:
        kind = "JPEG" if image.format == "MPO" else str(image.format)
        frames = _frames(image) if kind in SEVERAL else 1
        width, height = image.size
        size = (height, width) if image.getexif().get(ORIENTATION) in SIDEWAYS else (width, height)
        digest = hashlib.file_digest(stream, "sha256").digest()
    levels = np.asarray(grey.resize((EDGE, EDGE), Image.Resampling.BOX), dtype=np.float32)
    sharpness, spread = float(_laplacian(levels).var()), float(levels.std())
    greys = grey.resize((SMALL, SMALL), Image.Resampling.BOX).tobytes()
    looks, mirrored = _hash(grey), _hash(ImageOps.mirror(grey))
    return Record(path, size, kind, frames, looks, mirrored, greys, sharpness, spread, digest)


def _frames(image: Image.Image) -> int:
    try:
        return getattr(image, "n_frames", 1)
    except DAMAGE:
        return 0


def _laplacian(levels: NDArray[np.float32]) -> NDArray[np.float32]:
    middle = levels[1:-1, 1:-1]
    return levels[:-2, 1:-1] + levels[2:, 1:-1] + levels[1:-1, :-2] + levels[1:-1, 2:] - 4 * middle


def _hash(grey: Image.Image) -> int:
    small = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    return int.from_bytes(np.packbits(np.diff(small, axis=1) > STEP).tobytes(), "big")
