"""A confusion matrix as a picture: which labels are taken for which others."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageColor, ImageDraw, ImageFont

from patina.watch.sheet import ELLIPSIS, INK, PAPER, QUIET, Font

FULL = "#2f6f73"
"""The colour of a cell that holds all rows of its label."""
CELL, MARGIN, POINTS = 56, 24, 15
LONGEST = 22
"""Characters of a label that are shown."""
LEGEND = "rows: the label; columns: what the model says"
NUMBERED = f"{LEGEND}; both by number, for want of a font: see classifier.json"
FONTS = ("NotoSansCJK-Regular.ttc", "NotoSansSC-Regular.otf", "msyh.ttc", "PingFang.ttc", "wqy-microhei.ttc")
"""Fonts of the system that know Chinese, which the built-in one does not."""


def draw_confusion(matrix: Sequence[Sequence[int]], labels: Sequence[str], title: str) -> Image.Image:
    """`matrix[label][taken for]` as counts in cells; a cell is the darker, the larger its share of its row."""
    font, legend = _font("".join(labels)), LEGEND
    if font is None:
        font, labels, legend = ImageFont.load_default(POINTS), [str(number) for number in range(len(labels))], NUMBERED
    names = [label if len(label) <= LONGEST else f"{label[: LONGEST - 1]}{ELLIPSIS}" for label in labels]
    room = max(_wide(name, font) for name in names)
    left, top = MARGIN + room + POINTS, MARGIN + 3 * POINTS + room + POINTS
    small = ImageFont.load_default(POINTS - 3)
    width = max(left + CELL * len(names), MARGIN + _wide(title, font), MARGIN + _wide(legend, small)) + MARGIN
    sheet = Image.new("RGB", (width, top + CELL * len(names) + 3 * POINTS + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), title, INK, font)
    for at, (name, row) in enumerate(zip(names, matrix, strict=True)):
        draw.text((left - POINTS, top + CELL * at + CELL // 2), name, INK, font, anchor="rm")
        _upright(sheet, name, (left + CELL * at + CELL // 2, top - POINTS // 2), font)
        for other, number in enumerate(row):
            corner = (left + CELL * other, top + CELL * at)
            _cell(draw, corner, number, number / max(1, sum(row)), font)
    draw.text((MARGIN, top + CELL * len(names) + POINTS), legend, QUIET, small)
    return sheet


def _cell(draw: ImageDraw.ImageDraw, corner: tuple[int, int], number: int, share: float, font: Font) -> None:
    x, y = corner
    draw.rectangle((x, y, x + CELL - 2, y + CELL - 2), _between(PAPER, FULL, 0.06 + 0.94 * share))
    ink = PAPER if share > 0.5 else INK if number else QUIET
    draw.text((x + CELL // 2 - 1, y + CELL // 2 - 1), str(number), ink, font, anchor="mm")


def _between(light: str, dark: str, share: float) -> tuple[int, ...]:
    pairs = zip(ImageColor.getrgb(light), ImageColor.getrgb(dark), strict=True)
    return tuple(round(one + (other - one) * share) for one, other in pairs)


def _upright(sheet: Image.Image, text: str, foot: tuple[int, int], font: Font) -> None:
    """Write a text that reads upwards and begins above `foot`."""
    line = Image.new("RGB", (_wide(text, font) + 2, 2 * POINTS), PAPER)
    ImageDraw.Draw(line).text((0, POINTS), text, INK, font, anchor="lm")
    turned = line.transpose(Image.Transpose.ROTATE_90)
    sheet.paste(turned, (foot[0] - turned.width // 2, foot[1] - turned.height))


def _wide(text: str, font: Font) -> int:
    return round(font.getlength(text))


def _font(text: str) -> Font | None:
    """The built-in font, or one of the system's where the text has letters beyond Latin; None where there is none."""
    if all(char <= "\u024f" for char in text):
        return ImageFont.load_default(POINTS)
    for name in FONTS:
        try:
            return ImageFont.truetype(name, POINTS)
        except OSError:
            continue
    return None
