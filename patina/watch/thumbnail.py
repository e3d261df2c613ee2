"""The picture that a web UI shows beside a LoRA, written where no picture of the user's stands."""

from pathlib import Path

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from patina.files import replacing
from patina.watch.console import say

EDGE = 512
"""Longest edge in pixels."""
ENDINGS = tuple(f"{middle}.{kind}" for middle in ("", ".preview") for kind in ("png", "jpg", "jpeg", "webp", "gif"))
"""What follows the LoRA's name in the pictures that web UIs look for; all of them take the first, `NAME.png`."""
MAKER = ("Software", "Patina thumbnail")
"""The PNG entry by which ours is known again."""


def save_thumbnail(picture: Image.Image, lora: Path) -> None:
    """Save a small copy of `picture` as `NAME.png` beside `NAME.safetensors`, instead of an earlier one of ours.

    Where a picture stands there that a run did not write, it stays, and nothing is put before it.
    """
    if theirs := next((path for path in _beside(lora) if not _ours(path)), None):
        say(f"{theirs} is your own picture and stays as the preview")
        return
    small = picture.copy()
    small.thumbnail((EDGE, EDGE))
    info = PngInfo()
    info.add_text(*MAKER)
    with replacing(lora.with_suffix(".png")) as part:
        small.save(part, format="PNG", pnginfo=info)


def _beside(lora: Path) -> list[Path]:
    paths = (lora.with_name(lora.stem + ending) for ending in ENDINGS)
    return [path for path in paths if path.exists()]


def _ours(path: Path) -> bool:
    try:
        with Image.open(path) as file:
            return file.info.get(MAKER[0]) == MAKER[1]
    except (OSError, UnidentifiedImageError):
        return False
