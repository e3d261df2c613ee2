"""Small copies of pictures for the page, made when they are asked for."""

from io import BytesIO
from pathlib import Path
from threading import Semaphore

from patina.data.images import ImageError, open_image

EDGE = 512
"""Longest edge in pixels: sharp on a screen of twice the usual density."""
QUALITY = 82
AT_ONCE = Semaphore(2)
"""A picture of the largest size that is read takes a gigabyte while it is; a browser asks for six."""


def thumbnail(folder: Path, image: Path) -> bytes:
    """The picture as a JPEG of at most EDGE x EDGE pixels. Raises ImageError where it cannot be read.

    A link that has come to lead out of the folder since the pictures were listed is refused too.
    """
    file = image.resolve()
    if not file.is_relative_to(folder.resolve()):
        raise ImageError(f"{image}: leads out of the folder; put the picture itself there")
    with AT_ONCE:
        picture = open_image(file, small=EDGE)
        picture.thumbnail((EDGE, EDGE))
    stream = BytesIO()
    picture.save(stream, format="JPEG", quality=QUALITY)
    return stream.getvalue()
