"""Finding and opening training pictures: whatever the file, 8-bit RGB the right way up, or a sentence why not."""

import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from patina.errors import PatinaError

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"})
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
"""What is tried on a file's first bytes. Not all that Pillow has: its EPS reader runs another program."""

MAX_MEGAPIXELS = 200
CEILINGS = {"I": (255, 65535), "F": (1.0, 255.0, 65535.0)}
"""Where white lies in pictures whose type does not say it: the first that no pixel exceeds."""

BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
DAMAGE = (OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError, OverflowError, MemoryError)
DAMAGE += (RuntimeError, struct.error, zlib.error)
"""What Pillow's readers raise on files whose content is not what its header promised."""

TORN = "(Possibly )?corrupt EXIF|Truncated File Read|Metadata Warning, tag|Tag (offset|data) "
"""How Pillow's warnings begin of a picture's notes (EXIF, and the tags of a TIFF) that are torn; it goes on without."""

ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)
"""The EXIF entry that tells how a picture is turned, and what it says of those that lie on their side."""
PNG, NOTES = b"\x89PNG\r\n\x1a\n", (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
"""What a PNG begins with, and its chunks that EXIF or XMP can be in."""


class ImageError(PatinaError):
    """A picture that cannot be used; the message names the file, what is wrong and what to do."""


def natural_key(name: str) -> tuple[list[list[str | int]], str]:
    """Sort key of a POSIX path, folder by folder: 2.png before 10.png; case only decides between equals."""
    parts = [re.split(r"(\d+)", part) for part in name.casefold().split("/")]
    return [[int(piece) if at % 2 else piece for at, piece in enumerate(part)] for part in parts], name


def find_images(folder: Path, recursive: bool = False, below: str = "give the folder that holds them") -> list[Path]:
    """The pictures of a folder, as `pictures_in` finds them; `below`: what to do where they lie further down.

    Raises PatinaError where there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise PatinaError(f"{folder}: no such folder; give the folder that holds the pictures")
    if wanted := pictures_in(folder, recursive):
        return wanted
    if found := pictures_in(folder, recursive=True):
        raise PatinaError(f"{folder}: no picture in the folder itself but {len(found)} below it; {below}")
    kinds = " ".join(sorted(EXTENSIONS))
    raise PatinaError(f"{folder}: no picture in this folder; put some there, with one of the endings {kinds}")


def pictures_in(folder: Path, recursive: bool = False) -> list[Path]:
    """The pictures of a folder by extension, in natural order; hidden files and `*-masklabel*` files are left out."""
    found = [path for path in folder.glob("**/*" if recursive else "*") if _is_picture(path, folder)]
    return sorted(found, key=lambda path: natural_key(path.relative_to(folder).as_posix()))


def _is_picture(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    known = path.suffix.lower() in EXTENSIONS and "-masklabel" not in path.name
    return known and not hidden and path.is_file()


def mask_file(picture: Path) -> Path:
    """Where a picture's mask is: `a-masklabel.png` beside `a.jpg`, as OneTrainer has it."""
    return picture.with_name(f"{picture.stem}-masklabel.png")


def open_image(path: Path, max_megapixels: int = MAX_MEGAPIXELS, small: int | None = None) -> Image.Image:
    """Read a picture as mode RGB, turned as its EXIF says, on white where it is transparent.

    The content decides the format, not the extension; of an animation the first frame is read. With `small` a JPEG is
    decoded at the least of its scales that leaves both edges at least that many pixels. Raises ImageError.
    """
    with opened(path, max_megapixels) as image:
        if small is not None:
            image.draft(None, (small, small))
        return _to_rgb(ImageOps.exif_transpose(image))


@contextmanager
def opened(path: Path, max_megapixels: int = MAX_MEGAPIXELS) -> Iterator[Image.Image]:
    """The picture as Pillow has it, its pixels not yet read; what goes wrong with them within is an ImageError too."""
    _hush()
    # Pillow's guard is a global; raised to our limit it still stops a reader from allocating a far larger canvas.
    Image.MAX_IMAGE_PIXELS = max_megapixels * 1_000_000
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_megapixels * 1_000_000:
                raise Image.DecompressionBombError(f"{width} x {height} pixels")
            yield image
    except (*BOMBS, *DAMAGE) as error:
        raise ImageError(f"{path}: {_explain(path, error, max_megapixels)}") from error


def _hush() -> None:
    """Keep warnings of torn notes from the terminal: the picture is read all the same, and nobody need act on them.

    The filter is the process's, set once and left: `warnings.catch_warnings` would undo in one thread what another has
    set, and a filter that is set anew has Python repeat every other warning.
    """
    ours = ("ignore", re.compile(TORN, re.IGNORECASE), UserWarning, re.compile("PIL"), 0)
    if ours not in warnings.filters:
        warnings.filterwarnings("ignore", TORN, UserWarning, "PIL")


def open_alpha(path: Path, max_megapixels: int = MAX_MEGAPIXELS) -> Image.Image | None:
    """How solid each pixel of a picture is, as mode L, turned as `open_image` does; None where nothing says it.

    Raises ImageError.
    """
    with opened(path, max_megapixels) as image:
        upright = ImageOps.exif_transpose(image)
        return upright.convert("RGBA").getchannel("A") if upright.has_transparency_data else None


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height as `open_image` gives them, from the file's head alone. Raises ImageError."""
    with opened(path) as image:
        width, height = image.size
        # a PNG's own `getexif` decodes all pixels, to see what may stand behind them
        exif = image.getexif() if image.format != "PNG" or _ends_in_notes(path) else Image.Image.getexif(image)
        return (height, width) if exif.get(ORIENTATION) in SIDEWAYS else (width, height)


def _ends_in_notes(png: Path) -> bool:
    """Whether a PNG has chunks behind its pixels that can tell how it is turned."""
    pixels = False
    with png.open("rb") as file:
        file.seek(len(PNG))
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if pixels and kind in NOTES:
                return True
            pixels = pixels or kind == b"IDAT"
            file.seek(length + 4, os.SEEK_CUR)  # its checksum follows
    return False


def _explain(path: Path, error: Exception, max_megapixels: int) -> str:
    if isinstance(error, BOMBS):
        return f"larger than the {max_megapixels} megapixels that are read ({error}); scale it down"
    if isinstance(error, UnidentifiedImageError) and path.stat().st_size == 0:
        return "the file is empty; copy it again or remove it"
    if isinstance(error, UnidentifiedImageError):
        return f"not a picture of a kind that is read here ({', '.join(FORMATS)}); save it as PNG or remove it"
    if isinstance(error, OSError) and error.errno:
        return f"cannot be opened ({error.strerror}); check its name and permissions"
    return f"the picture is damaged or cut short ({error}); copy it again or remove it"


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in CEILINGS or image.mode.startswith("I;16"):
        image = _to_8_bits(image)
    elif image.mode == "CMYK" and "icc_profile" in image.info:
        image = _inks_to_rgb(image)
    return _over_white(image) if image.has_transparency_data else image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits to L, or LA where one value stands for transparent; `convert` would clip to white."""
    values = np.asarray(image)
    low, high = values.min().astype(float), values.max().astype(float)
    if not np.isfinite([low, high]).all():
        raise ValueError("some pixels are not numbers")
    white = next((top for top in CEILINGS.get(image.mode, (65535,)) if low >= 0 and high <= top), None)
    low, high = (low, high) if white is None else (0, white)
    levels = (values.astype(np.float64) - low) * 255 / max(high - low, 1e-12)
    grey = Image.fromarray(levels.round().astype(np.uint8))
    clear = image.info.get("transparency")
    if clear is not None:
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _inks_to_rgb(image: Image.Image) -> Image.Image:
    """CMYK to sRGB as the file's own profile says; a profile that cannot be used is the same as none."""
    try:
        inks = ImageCms.ImageCmsProfile(BytesIO(image.info["icc_profile"]))
        screen = ImageCms.profileToProfile(image, inks, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return image.convert("RGB")
    assert screen is not None
    return screen


def _over_white(image: Image.Image) -> Image.Image:
    picture = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
