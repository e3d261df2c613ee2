"""A folder as nobody should have it: a row for each file, how it is made and what the tools say of it."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms

EDGE = 64
LONG = "長" * 83 + "ab.png"
"""255 bytes, the most that common file systems take: a name of 300 characters cannot be on them."""


class Row(NamedTuple):
    """A file of the folder."""

    name: str
    make: Callable[[], bytes]
    refused: str = ""
    """Words of the sentence by which labelling, checking and training refuse it; empty: all three use it."""
    unlabelled: str = ""
    """Words of the sentence by which labelling alone refuses it."""
    doubt: str = ""
    """Words of what checking says of it besides."""


def drawn(mode: str = "RGB", size: tuple[int, int] = (EDGE, EDGE), seed: int = 0) -> Image.Image:
    """Noise, so that no two seeds look alike."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    return Image.frombytes(mode, size, np.random.default_rng(seed).bytes(size[0] * size[1] * bands))


def saved(image: Image.Image, kind: str, **options) -> bytes:
    """The file that Pillow writes."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def plain(kind: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (EDGE, EDGE), seed: int = 0, **options):
    """Maker of a picture that is all right but for what is said."""
    return lambda: saved(drawn(mode, size, seed), kind, **options)


def as_(mode: str, kind: str = "PNG", **options):
    """Maker of grey converted to a mode, or of a palette."""
    return lambda: saved(drawn("RGB").convert(mode), kind, **options)


def of(values: np.ndarray, kind: str, **options):
    """Maker of a picture of these numbers."""
    return lambda: saved(Image.fromarray(values), kind, **options)


def several(kind: str, **options):
    """Maker of three frames."""
    frames = [drawn(seed=seed) for seed in range(3)]
    return lambda: saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)


def turned(orientation: int):
    """Maker of a JPEG whose EXIF says how it was held."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return lambda: saved(drawn(size=(96, EDGE)), "JPEG", exif=exif)


def cut(make: Callable[[], bytes], share: float):
    """Maker of the first part of a file."""
    return lambda: (whole := make())[: int(len(whole) * share)]


def raw(content: bytes):
    """Maker of these bytes."""
    return lambda: content


def bomb() -> bytes:
    """A PNG whose head promises 60,000 x 60,000 pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 1000)
    chunks = [struct.pack(">I", len(one) - 4) + one + struct.pack(">I", zlib.crc32(one)) for one in (head, data)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def flipped() -> bytes:
    """A PNG with a wrong bit amid its pixels."""
    whole = bytearray(plain()())
    whole[len(whole) // 2] ^= 1
    return bytes(whole)


DEEP = (np.arange(EDGE * EDGE).reshape(EDGE, EDGE) * 16).astype(np.uint16)
FLOAT = np.linspace(0, 1, EDGE * EDGE, dtype=np.float32).reshape(EDGE, EDGE)
HOLED = np.where(FLOAT > 0.5, np.float32("nan"), FLOAT)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
DAMAGED, NO_PICTURE, EMPTY = "damaged or cut short", "not a picture of a kind", "the file is empty"

KINDS = [
    Row("bit1.png", as_("1")),
    Row("grey8.png", as_("L")),
    Row("grey16.png", of(DEEP, "PNG")),
    Row("grey with alpha.png", as_("LA")),
    Row("palette.png", as_("P")),
    Row("palette clear.png", as_("P", transparency=0)),
    Row("rgb key.png", plain(transparency=(1, 2, 3))),
    Row("rgba.png", plain(mode="RGBA")),
    Row("all clear.png", lambda: saved(Image.new("RGBA", (EDGE, EDGE)), "PNG"), doubt="hardly any contrast"),
    Row("not packed?.png", plain(compress_level=0)),
    Row("moving.png", several("PNG"), doubt="3 frames"),
    Row("press.jpg", plain("JPEG", "CMYK")),
    Row("slow.jpeg", plain("JPEG", progressive=True)),
    Row("grey.jpg", as_("L", "JPEG")),
    Row("two cameras.jpg", several("MPO")),
    *(Row(f"turned {number}.jpg", turned(number)) for number in range(10)),
    Row("lossy.webp", plain("WEBP")),
    Row("clear.webp", plain("WEBP", "RGBA", lossless=True)),
    Row("moving.webp", several("WEBP", lossless=True), doubt="3 frames"),
    Row("new.avif", plain("AVIF")),
    Row("still.gif", as_("P", "GIF")),
    Row("moving.gif", several("GIF"), doubt="3 frames"),
    Row("pages.tif", several("TIFF"), doubt="3 frames"),
    Row("deep.tiff", of(DEEP, "TIFF")),
    Row("float.tif", of(FLOAT, "TIFF")),
    Row("packed.tif", plain("TIFF", compression="tiff_lzw")),
    Row("press.tif", plain("TIFF", "CMYK")),
    Row("old.bmp", plain("BMP")),
    Row("palette.bmp", as_("P", "BMP")),
    Row("profile.png", plain(icc_profile=SRGB)),
    Row("broken profile.jpg", plain("JPEG", icc_profile=SRGB[:50])),
    Row("broken press profile.jpg", plain("JPEG", "CMYK", icc_profile=b"no profile")),
    Row("torn exif.jpg", plain("JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")),
    Row("png called.jpg", plain(), doubt="is PNG"),
    Row("jpeg called.PNG", plain("JPEG"), doubt="is JPEG"),
    Row("1x1.png", plain(size=(1, 1)), doubt="1 x 1, scaled up 8 times to 8 x 8"),
    Row("8x8.png", plain(size=(8, 8)), doubt="8 x 8, trained at 8 x 8"),
    Row("strip.png", plain(size=(2000, 4)), doubt="2000 x 4"),
    Row("high.png", plain(size=(4, 2000)), doubt="4 x 2000"),
    Row("end missing.gif", cut(several("GIF"), 0.8)),
    Row("rubbish behind.jpg", lambda: plain("JPEG")() + b"PK\3\4" * 99),
]

NAMES = [
    Row(name, plain(size=(EDGE + 8 * number, EDGE)))
    for number, name in enumerate(
        [
            "two  spaces .png",
            "'single' \"double\" `back`.png",
            "two\nlines.png",
            "two\rlines.png",
            "tab\there.png",
            "line\u2028separator.png",
            "comma, semicolon; pipe|.png",
            "emoji 🖌️👩‍🎨.png",
            "水墨画 江南.png",
            LONG,
            "-rf.png",
            "--output=x.png",
            "%s %d %n.png",
            "{} {0} {name!r}.png",
            "<b>bold&amp;.png",
            "$(touch owned) `id`.png",
            "=1+1.png",
            "#not a comment.png",
            "stem..png",
            "re\u0301sume\u0301.png",
            "r\u00e9sum\u00e9.png",
            "CON.png",
            "[ab]*?.png",
            "Upper.PNG",
            "upper.png",
            "bell\x07 red\x1b[31m.png",
            "right\u202etfel.png",
        ]
    )
]

REFUSED = [
    Row("nothing.png", raw(b""), EMPTY),
    Row("text.png", raw(b"I am no picture.\n"), NO_PICTURE),
    Row("page.jpg", raw(b"<!DOCTYPE html><title>404</title>"), NO_PICTURE),
    Row("zeros.jpg", raw(bytes(5000)), NO_PICTURE),
    Row("program.gif", raw(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), NO_PICTURE),
    Row("photoshop called.png", raw(b"8BPS\0\1" + bytes(500)), NO_PICTURE),
    Row("ppm called.png", plain("PPM"), NO_PICTURE),
    Row("jp2 called.jpg", plain("JPEG2000"), NO_PICTURE),
    Row("ico called.png", plain("ICO"), NO_PICTURE),
    Row("cut head.jpg", raw(b"\xff\xd8\xff\xe0\0\x10JFIF"), "picture"),
    Row("bomb.png", bomb, "larger than the 200 megapixels"),
    Row("cut.png", cut(plain(), 0.5), DAMAGED),
    Row("cut.webp", cut(plain("WEBP"), 0.5), "picture"),
    Row("cut.avif", cut(plain("AVIF"), 0.5), "picture"),
    Row("wrong bit.png", flipped, DAMAGED),
]

TORN = [
    Row("cut.jpg", cut(plain("JPEG"), 0.5), DAMAGED),
    Row("cut.tif", cut(plain("TIFF"), 0.5), DAMAGED),
    Row("cut.bmp", cut(plain("BMP"), 0.5), DAMAGED),
    Row("holes.tif", of(HOLED, "TIFF"), DAMAGED),
]
"""Pictures whose head is whole: the offline labeller, which looks at no pixel, captions them."""

UNSEEN = [
    Row("kind.jp2", plain("JPEG2000")),
    Row("kind.ppm", plain("PPM")),
    Row("kind.ico", plain("ICO")),
    Row("ends in a dot.png.", plain()),
    Row(".hidden.png", plain()),
    Row("no ending", plain()),
    Row("a-masklabel.png", plain("PNG", "L")),
    Row("Thumbs.db", raw(b"\xd0\xcf\x11\xe0")),
]
"""Files that are no pictures of the folder by their names."""

UNSAYABLE = [
    Row(name, plain(size=(EDGE, EDGE + 8 * number)), unlabelled="which a table cannot say; rename")
    for number, name in enumerate([" leading space.png", "back\\slash.png", "latin-1 \udce9t\udce9.png"])
]
"""Names that no table can say: captions are beside them."""

TEXTS = {
    "gbk": ("水墨画，江南", "gb18030"),
    "marked": ("ink, marked", "utf-8-sig"),
    "wide": ("ink, wide", "utf-16"),
    "windows": ("ink,\r\nwindows\r\n", "utf-8"),
    "empty": ("", "utf-8"),
    "latin": ("un été à la forêt", "latin-1"),
}
"""What is in the text beside a picture, and its encoding."""

BESIDE = [
    *(Row(f"{stem}.png", plain(seed=90 + number)) for number, stem in enumerate(list(TEXTS)[:-1])),
    Row("latin.png", plain(), unlabelled="is not UTF-8; save", doubt="is not UTF-8; save"),
]


def make_folder(folder: Path, rows: list[Row]) -> None:
    """Write the files, and a folder that is called as a picture."""
    folder.mkdir()
    (folder / "folder.png").mkdir()
    for row in rows:
        (folder / row.name).write_bytes(row.make())
    for stem, (text, encoding) in TEXTS.items():
        (folder / f"{stem}.txt").write_bytes(text.encode(encoding))
    for row in UNSAYABLE:
        (folder / row.name).with_suffix(".txt").write_text("a name")
