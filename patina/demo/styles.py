"""The ways to draw a scene: each changes line, light, palette and texture, none changes what is there."""

import random
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from patina.demo.world import INK, Colour, Outline, Scene, mix

Size = tuple[int, int]
"""Width and height in pixels."""
OVERSAMPLE = 2


def draw(scene: Scene, style: str, size: Size = (128, 128)) -> Image.Image:
    """The scene in a style of STYLES, as an RGB image; the same scene, style and size give the same pixels.

    A size that is not square shows the square world in its middle and the backdrop around it.
    """
    large = (size[0] * OVERSAMPLE, size[1] * OVERSAMPLE)
    drawn = STYLES[style](_placed(scene.outlines(), large), large, random.Random(scene.seed))
    return drawn.resize(size, Image.Resampling.LANCZOS)


def _placed(outlines: list[Outline], size: Size) -> list[Outline]:
    """From the unit square to pixels; the backdrop is stretched over the whole picture."""
    width, height = size
    side = min(size)
    left, top = (width - side) / 2, (height - side) / 2

    def place(x: float, y: float, layer: str) -> tuple[float, float]:
        return (x * width, y * height) if layer == "ground" else (left + x * side, top + y * side)

    return [Outline(tuple(place(x, y, o.layer) for x, y in o.points), o.fill, o.layer) for o in outlines]


def _plain(outlines: list[Outline], size: Size, rng: random.Random) -> Image.Image:
    """Flat colours with a soft dark outline: a picture book."""
    image = Image.new("RGB", size)
    pen = ImageDraw.Draw(image)
    line = max(2, min(size) // 90)
    for points, fill, layer in outlines:
        pen.polygon(points, fill=fill)
        if layer == "thing":
            pen.line((*points, points[0]), fill=mix(fill, INK, 0.62), width=line, joint="curve")
    return image


def _neon(outlines: list[Outline], size: Size, rng: random.Random) -> Image.Image:
    """Night: dark violet air, everything drawn in glowing tubes, a haze of magenta and cyan low down."""
    unit = min(size) / 128
    base, glow = Image.new("RGB", size), Image.new("RGB", size)
    pen, tubes = ImageDraw.Draw(base), ImageDraw.Draw(glow)
    for points, fill, layer in outlines:
        vivid = _vivid(fill)
        if layer == "ground":
            pen.polygon(points, fill=mix((10, 6, 26), fill, 0.13))
            tubes.line((*points, points[0]), fill=mix((0, 0, 0), vivid, 0.22), width=round(1.4 * unit))
        else:
            tubes.polygon(points, fill=(0, 0, 0))
            pen.polygon(points, fill=mix((8, 4, 20), fill, 0.22))
            width = round((3.0 if layer == "thing" else 1.6) * unit)
            tubes.line((*points, points[0]), fill=vivid, width=width, joint="curve")
    lit = ImageChops.screen(base, _haze(size))
    for radius, strength in ((9, 1.0), (3.2, 0.9)):
        blurred = glow.filter(ImageFilter.GaussianBlur(radius * unit))
        lit = ImageChops.screen(lit, blurred.point([min(255, int(value * strength * 1.7)) for value in range(256)] * 3))
    return ImageChops.screen(lit, glow)


def _vivid(colour: Colour) -> Colour:
    """The same hue as light: full brightness, more saturation; near-greys become a cold white."""
    low, high = min(colour), max(colour)
    if high - low < 24:
        return (235, 240, 255) if high > 128 else (60, 190, 255)
    red, green, blue = (round(255 * ((value - low) / (high - low)) ** 0.9 * 0.92 + 18) for value in colour)
    return red, green, blue


def _haze(size: Size) -> Image.Image:
    height, width = size[1], size[0]
    down = np.linspace(0, 1, height)[:, None]
    across = np.linspace(0, 1, width)[None, :]
    low = np.clip((down - 0.35) / 0.65, 0, 1) ** 2
    magenta, cyan = low * (1 - across), low * across
    layers = (70 * magenta + 8 * cyan + 14, 10 * magenta + 56 * cyan + 6, 62 * magenta + 74 * cyan + 34)
    return Image.fromarray(np.stack([np.broadcast_to(x, (height, width)) for x in layers], -1).astype(np.uint8))


def _pencil(outlines: list[Outline], size: Size, rng: random.Random) -> Image.Image:
    """Coloured pencil on rough cream paper: hatching for every fill, graphite lines drawn twice."""
    unit = min(size) / 128
    image = Image.new("RGB", size, (246, 241, 228))
    for points, fill, layer in outlines:
        light = mix(fill, (246, 241, 228), 0.62 if layer == "ground" else 0.3)
        angle = rng.uniform(-0.35, 0.35) + (0.5 if layer == "ground" else 0.9)
        mask = _mask(points, size)
        if layer != "ground":
            image.paste(mix(light, (246, 241, 228), 0.55), mask=mask)
        hatching = _hatching(size, mask.getbbox(), angle, (3.4 if layer == "ground" else 2.2) * unit, rng)
        image.paste(light, mask=ImageChops.multiply(mask, hatching))
        if layer != "ground":
            _graphite(image, points, unit, rng)
    return _grain(image, rng, 11)


def _chalk(outlines: list[Outline], size: Size, rng: random.Random) -> Image.Image:
    """Coloured chalk lines on a blackboard, the fills rubbed in thinly."""
    board = (28, 34, 36)
    unit = min(size) / 128
    image = Image.new("RGB", size, board)
    pen = ImageDraw.Draw(image)
    for points, fill, layer in outlines:
        ground = layer == "ground"
        pen.polygon(points, fill=mix(board, fill, 0.14 if ground else 0.24))
        width = round((1.2 if ground else 2.4 if layer == "thing" else 1.4) * unit)
        pen.line((*points, points[0]), fill=mix(board, fill, 0.3 if ground else 0.95), width=width, joint="curve")
    return image


def _mask(points: tuple[tuple[float, float], ...], size: Size) -> Image.Image:
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).polygon(points, fill=255)
    return mask


def _hatching(size: Size, box: tuple[int, ...] | None, angle: float, gap: float, rng: random.Random) -> Image.Image:
    """Strokes at an angle (radians) over the box that a mask fills."""
    strokes = Image.new("L", size)
    if box is None:
        return strokes
    pen = ImageDraw.Draw(strokes)
    left, top, right, bottom = box
    height = bottom - top
    slant = height * np.tan(angle)
    x = left - max(slant, 0)
    while x < right - min(slant, 0):
        wobble = rng.uniform(-0.3, 0.3) * gap
        pen.line((x, bottom, x + slant + wobble, top), fill=rng.randint(150, 255), width=max(1, round(gap * 0.55)))
        x += gap * rng.uniform(0.8, 1.2)
    return strokes


def _graphite(image: Image.Image, points: tuple[tuple[float, float], ...], unit: float, rng: random.Random) -> None:
    pen = ImageDraw.Draw(image)
    width = max(1, round(0.8 * unit))
    for shade in (72, 104):
        jittered = [(x + rng.uniform(-0.8, 0.8) * unit, y + rng.uniform(-0.8, 0.8) * unit) for x, y in points]
        pen.line((*jittered, jittered[0]), fill=(shade, shade, shade + 4), width=width, joint="curve")


def _pixel(outlines: list[Outline], size: Size, rng: random.Random) -> Image.Image:
    """Fifty big pixels to the shorter side, few colours, hard black edges: an old console."""
    cell = min(size) / 50
    small = (round(size[0] / cell), round(size[1] / cell))
    image = Image.new("RGB", small)
    pen = ImageDraw.Draw(image)
    for points, fill, layer in outlines:
        coarse = [(x / cell, y / cell) for x, y in points]
        stepped = tuple(min(255, round(value / 51) * 51) for value in fill)
        roomy = layer == "thing" and max(x for x, _ in coarse) - min(x for x, _ in coarse) > 7
        pen.polygon(coarse, fill=stepped, outline=(20, 16, 28) if roomy else None)
    return image.resize(size, Image.Resampling.NEAREST)


def _watercolour(outlines: list[Outline], size: Size, rng: random.Random) -> Image.Image:
    """Thin washes with wavering, darker edges over a fine line, on white grained paper."""
    noise = np.random.default_rng(rng.getrandbits(32))
    paper = np.full((size[1], size[0], 3), (252, 250, 244), np.float32)
    waver = _clouds(size, 18, noise) * 0.8 + _clouds(size, 40, noise) * 0.35
    pigment = 1 + 0.22 * _clouds(size, 30, noise)
    for points, fill, layer in outlines:
        soft = 0.9 if layer == "ground" else 0.55
        wash = _wash(points, size, waver if layer != "detail" else waver * 0.3)
        rim = np.clip(wash - _blurred(wash, min(size) / 40), 0, 1)
        depth = np.clip((wash * (1 - 0.45 * soft) + rim * 0.7) * pigment, 0, 1)[..., None]
        colour = np.array(mix(fill, (252, 250, 244), 0.4 if layer == "ground" else 0.14), np.float32)
        paper += (colour - paper) * depth * (1.0 if layer == "detail" else 0.92)
    painted = Image.fromarray(np.clip(paper, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(painted)
    for points, _, layer in outlines:
        if layer == "thing":
            pen.line((*points, points[0]), fill=(120, 112, 116), width=max(1, min(size) // 160))
    return _grain(painted, rng, 9)


def _wash(points: tuple[tuple[float, float], ...], size: Size, waver: np.ndarray) -> np.ndarray:
    """A filled outline whose edge wanders with the noise: coverage from 0 to 1."""
    blurred = np.asarray(_mask(points, size).filter(ImageFilter.GaussianBlur(min(size) / 90)), np.float32) / 255
    return np.clip((blurred - 0.5 + 0.16 * waver) * 5 + 0.5, 0, 1)


def _blurred(field: np.ndarray, radius: float) -> np.ndarray:
    image = Image.fromarray((field * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(image, np.float32) / 255


def _clouds(size: Size, cells: int, noise: np.random.Generator) -> np.ndarray:
    """Smooth noise from about -1 to 1, `cells` bumps across."""
    small = Image.fromarray(noise.random((cells, cells), np.float32))
    return np.asarray(small.resize(size, Image.Resampling.BICUBIC)) * 2 - 1


def _grain(image: Image.Image, rng: random.Random, strength: float) -> Image.Image:
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, strength, (image.height, image.width, 1))
    return Image.fromarray(np.clip(np.asarray(image, np.float32) + noise, 0, 255).astype(np.uint8))


STYLES: dict[str, Callable[[list[Outline], Size, random.Random], Image.Image]] = {
    "plain": _plain,
    "neon": _neon,
    "pencil": _pencil,
    "pixel": _pixel,
    "watercolour": _watercolour,
    "chalk": _chalk,
}
