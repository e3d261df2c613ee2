"""Pictures of every kind that users have open with the right pixels, or are refused with a sentence."""

import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from patina.data.images import ImageError, find_images, open_image, picture_size
from patina.errors import PatinaError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def half_and_half(size: tuple[int, int] = (8, 4), left: object = RED, right: object = BLUE, mode: str = "RGB"):
    image = Image.new(mode, size, right)
    image.paste(left, (0, 0, size[0] // 2, size[1]))
    return image


def pixels(path: Path) -> np.ndarray:
    image = open_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "WEBP"])
def test_lossless_kinds_keep_every_pixel(tmp_path, kind):
    half_and_half().save(tmp_path / "picture", kind, lossless=True)
    np.testing.assert_array_equal(pixels(tmp_path / "picture"), np.asarray(half_and_half()))


@pytest.mark.parametrize("kind", ["JPEG", "AVIF"])
def test_lossy_kinds_come_close(tmp_path, kind):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    half_and_half((32, 32)).save(tmp_path / "picture", kind, quality=95)
    difference = pixels(tmp_path / "picture").astype(int) - np.asarray(half_and_half((32, 32))).astype(int)
    assert abs(difference[:, [2, -3]]).max() < 24


def test_content_decides_not_the_extension(tmp_path):
    half_and_half().save(tmp_path / "really_png.jpg", "PNG")
    np.testing.assert_array_equal(pixels(tmp_path / "really_png.jpg"), np.asarray(half_and_half()))


@pytest.mark.parametrize(("orientation", "turned"), [(1, "_"), (3, "180"), (6, "270"), (8, "90")])
def test_exif_orientation_is_applied(tmp_path, orientation, turned):
    stored, exif = half_and_half((16, 8)), Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.png", exif=exif)
    quarter_turns = {"_": 0, "90": 1, "180": 2, "270": 3}[turned]
    np.testing.assert_array_equal(pixels(tmp_path / "photo.png"), np.rot90(np.asarray(stored), quarter_turns))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


TURNED = b"<x:xmpmeta xmlns:tiff='' tiff:Orientation=\"6\"/>"


@pytest.mark.parametrize(("kind", "data"), [(b"eXIf", None), (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + TURNED)])
@pytest.mark.parametrize("behind", [False, True])
def test_the_size_of_a_turned_png_is_known_wherever_it_says_so(tmp_path, kind, data, behind):
    exif = Image.Exif()
    exif[0x0112] = 6
    note = chunk(kind, data or exif.tobytes().removeprefix(b"Exif\0\0"))
    half_and_half((16, 8)).save(path := tmp_path / "photo.png")
    plain = path.read_bytes()
    at = plain.index(b"IEND" if behind else b"IDAT") - 4
    path.write_bytes(plain[:at] + note + plain[at:])
    assert picture_size(path) == open_image(path).size == (8, 16)


def test_the_size_of_a_png_is_in_its_head(tmp_path):
    half_and_half((64, 8)).save(path := tmp_path / "cut.png")
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"IDAT") + 8])
    assert picture_size(path) == (64, 8)
    with pytest.raises(ImageError, match="damaged or cut short"):
        open_image(path)


def test_a_phone_photo_lying_on_its_side_stands_up(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    half_and_half((32, 16)).save(tmp_path / "photo.jpg", exif=exif, quality=95, subsampling=0)
    photo = pixels(tmp_path / "photo.jpg")
    assert photo.shape == (32, 16, 3)
    assert photo[2, 8, 0] > 200  # what was left is now above
    assert photo[29, 8, 2] > 200


def test_16_bit_grey_is_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "scan.png")
    with Image.open(tmp_path / "scan.png") as image:
        assert image.mode == "I;16"
    np.testing.assert_array_equal(pixels(tmp_path / "scan.png")[:, :, 0], np.arange(256).reshape(16, 16))


def test_16_bit_grey_with_a_transparent_value_lies_on_white(tmp_path):
    Image.fromarray(np.array([[0, 30000]], np.uint16)).save(tmp_path / "scan.png", transparency=0)
    np.testing.assert_array_equal(pixels(tmp_path / "scan.png")[0, :, 0], [255, 117])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 51.0, 255.0]], np.float32), [0, 51, 255]),
        (np.array([[-1.0, 0.0, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0, 100, 255]], np.int32), [0, 100, 255]),
        (np.array([[0, 257, 65535]], np.int32), [0, 1, 255]),
        (np.array([[-100, 0, 100]], np.int32), [0, 128, 255]),
        (np.array([[70000, 70000, 70000]], np.int32), [0, 0, 0]),
    ],
)
def test_32_bit_grey_is_scaled_by_its_range(tmp_path, values, expected):
    Image.fromarray(values).save(tmp_path / "scan.tif")
    np.testing.assert_array_equal(pixels(tmp_path / "scan.tif")[0, :, 0], expected)


def test_a_float_picture_with_holes_is_refused(tmp_path):
    Image.fromarray(np.array([[0.0, np.nan]], np.float32)).save(tmp_path / "scan.tif")
    with pytest.raises(ImageError, match="not numbers"):
        open_image(tmp_path / "scan.tif")


@pytest.mark.parametrize("mode", ["1", "L"])
def test_grey_becomes_rgb(tmp_path, mode):
    half_and_half(left=0, right=255, mode=mode).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(pixels(tmp_path / "grey.png")[0, [0, -1]], [[0, 0, 0], WHITE])


@pytest.mark.parametrize(
    ("image", "options", "expected"),
    [
        (half_and_half(left=(0, 0, 0, 0), right=(*RED, 255), mode="RGBA"), {}, [WHITE, RED]),
        (half_and_half(left=(*BLUE, 51), right=(*RED, 255), mode="RGBA"), {}, [(204, 204, 255), RED]),
        (half_and_half(left=(0, 0), right=(9, 255), mode="LA"), {}, [WHITE, (9, 9, 9)]),
        (half_and_half(), {"transparency": RED}, [WHITE, BLUE]),
    ],
)
def test_transparent_parts_lie_on_white(tmp_path, image, options, expected):
    image.save(tmp_path / "cut_out.png", **options)
    np.testing.assert_array_equal(pixels(tmp_path / "cut_out.png")[0, [0, -1]], expected)


@pytest.mark.parametrize("transparency", [0, bytes([0, 255])])
def test_a_palette_with_transparency_lies_on_white(tmp_path, transparency):
    image = half_and_half(left=0, right=1, mode="P")
    image.putpalette([*RED, *BLUE])
    image.save(tmp_path / "logo.png", transparency=transparency)
    np.testing.assert_array_equal(pixels(tmp_path / "logo.png")[0, [0, -1]], [WHITE, BLUE])


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    for name in ("moves.gif", "moves.png", "moves.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        with Image.open(tmp_path / name) as image:
            assert image.n_frames == 3
        np.testing.assert_array_equal(pixels(tmp_path / name), np.asarray(frames[0]))


def ink_profile() -> bytes:
    """A minimal ICC profile for a press that prints cyan as a strong red: no guess without it finds that out."""
    lab = [(255, 128, 128)] * 16  # bare paper: L* 100
    lab[8:] = [(138, 208, 195)] * 8  # wherever the first ink is: L* 54, a* 80, b* 67
    lab[1::2] = [(0, 128, 128)] * 8  # wherever the last ink is: black
    table = struct.pack(">4s4xBBBx9i", b"mft1", 4, 3, 2, *(65536 * (i % 4 == 0) for i in range(9)))
    table += bytes(range(256)) * 4 + bytes(value for colour in lab for value in colour) + bytes(range(256)) * 3
    white = struct.pack(">4s4x3i", b"XYZ ", 63190, 65536, 54061)
    tags = [(b"wtpt", white), (b"A2B0", table)]
    offset, index, data = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, value in tags:
        index += struct.pack(">4sII", name, offset + len(data), len(value))
        data += value
    size = offset + len(data)
    header = struct.pack(">I4xI4s4s4s12x4s", size, 0x02400000, b"prtr", b"CMYK", b"Lab ", b"acsp").ljust(68, b"\0")
    return (header + struct.pack(">3i", 63190, 65536, 54061)).ljust(128, b"\0") + index + data


def test_cmyk_goes_through_its_profile(tmp_path):
    ink = half_and_half((32, 16), left=(255, 0, 0, 0), right=(0, 0, 0, 0), mode="CMYK")
    ink.save(tmp_path / "print.tif", icc_profile=ink_profile())
    left, right = pixels(tmp_path / "print.tif")[0, [0, -1]].astype(int)
    assert left[0] > 230
    assert left[1:].max() < 40
    assert right.min() > 250


@pytest.mark.parametrize("options", [{}, {"icc_profile": b"no profile at all"}])
def test_cmyk_without_a_usable_profile_is_still_read(tmp_path, options):
    ink = half_and_half((32, 16), left=(255, 0, 0, 0), right=(0, 0, 0, 0), mode="CMYK")
    ink.save(tmp_path / "print.tif", **options)
    np.testing.assert_array_equal(pixels(tmp_path / "print.tif")[0, [0, -1]], [(0, 255, 255), WHITE])


def noise(kind: str) -> bytes:
    values = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(values).save(stream := io.BytesIO(), kind)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF"])
def test_a_cut_off_file_is_refused_with_its_name(tmp_path, kind):
    data = noise(kind)
    (tmp_path / "cut.img").write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=r"cut\.img: .*(damaged or cut short|not a picture).*; .*remove it"):
        open_image(tmp_path / "cut.img")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "AVIF"])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_files_never_raise_anything_else(tmp_path, kind):
    random, data = np.random.default_rng(1), noise(kind)
    for _ in range(40):
        broken = bytearray(data)
        for place in random.integers(0, random.choice([60, len(data)]), 8):
            broken[place] = random.integers(256)
        (tmp_path / "broken").write_bytes(broken)
        with suppress(ImageError):
            assert open_image(tmp_path / "broken").mode == "RGB"


ENTRY = b"\x01\x0e\0\2\0\0\0\xff\0\0\0"  # a description of 255 letters, less the last byte of where they are


@pytest.mark.parametrize("notes", [b"\xff\xff", b"\0\2" + ENTRY + b"\x1a", b"\0\1" + ENTRY + b"\xff" + bytes(4)])
def test_torn_exif_is_no_word_on_the_terminal_and_other_warnings_are(tmp_path, notes):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08" + notes)
    with pytest.warns(UserWarning, match="(?i)exif|tag|truncated"), Image.open(tmp_path / "a.jpg") as image:
        image.getexif()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with ThreadPoolExecutor(4) as pool:
            assert {image.size for image in pool.map(open_image, [tmp_path / "a.jpg"] * 40)} == {(9, 9)}
        filters = list(warnings.filters)
        assert picture_size(tmp_path / "a.jpg") == (9, 9)
        assert warnings.filters == filters  # one more would have Python repeat what it has said
        warnings.warn_explicit("Invalid APNG", UserWarning, "PngImagePlugin.py", 1, "PIL.PngImagePlugin")
    assert [str(one.message) for one in heard] == ["Invalid APNG"]


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path):
    for side in (15_000, 60_000):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b""))
        with pytest.raises(ImageError, match=r"bomb\.png: larger than the 200 megapixels .*; scale it down"):
            open_image(tmp_path / "bomb.png")


def test_the_limit_is_exact(tmp_path):
    Image.new("L", (1000, 1000)).save(tmp_path / "one.png")
    Image.new("L", (1001, 1000)).save(tmp_path / "more.png")
    assert open_image(tmp_path / "one.png", max_megapixels=1).size == (1000, 1000)
    with pytest.raises(ImageError, match="1001"):
        open_image(tmp_path / "more.png", max_megapixels=1)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "is empty"), (b"<html>not found</html>", "not a picture of a kind"), (None, "No such file")],
)
def test_what_is_no_picture_is_named(tmp_path, content, words):
    if content is not None:
        (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImageError, match=rf"a\.png: .*{words}.*; "):
        open_image(tmp_path / "a.png")


def test_pictures_are_found_in_natural_order(tmp_path):
    wanted = ["1.png", "2.PNG", "10.Jpg", "b2.webp", "B10.jpeg", "c.avif", "d.gif", "e.tif", "f.TIFF", "g.bmp"]
    other = [".hidden.png", "1-masklabel.png", "notes.txt", "metadata.csv", "no_extension"]
    for name in wanted + other:
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in find_images(tmp_path)] == wanted


def test_subfolders_only_when_asked(tmp_path):
    for name in ("a.png", "sub/b.png", "sub10/c.png", "sub9/c.png", ".cache/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_images(tmp_path) == [tmp_path / "a.png"]
    names = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path, recursive=True)]
    assert names == ["a.png", "sub/b.png", "sub9/c.png", "sub10/c.png"]


def test_a_folder_without_pictures_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(PatinaError, match="no such folder"):
        find_images(tmp_path / "absent")
    with pytest.raises(PatinaError, match="no picture in this folder"):
        find_images(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.png").touch()
    with pytest.raises(PatinaError, match="1 below it; give the folder that holds them"):
        find_images(tmp_path)
    with pytest.raises(PatinaError, match="1 below it; add --recursive"):
        find_images(tmp_path, below="add --recursive")
