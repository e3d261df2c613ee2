"""Many pictures on one sheet, in rows and columns with words beside and above them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

PAPER, INK, QUIET, EMPTY = "#faf9f6", "#33312e", "#7c7770", "#edebe5"
LARGEST = 256
"""Pixels that a picture's longer side takes at most; smaller ones are shown as they are."""
MARGIN, GAP = 28, 4
ELLIPSIS = "…"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Pictures = Sequence[Sequence[Image.Image | None]]


def contact_sheet(pictures: Pictures, rows: Sequence[str], columns: Sequence[str], title: str = "") -> Image.Image:
    """A sheet with `pictures[row][column]`, each as it is or shrunk to 256 pixels; None leaves the place empty.

    `rows` and `columns` are the words for each, wrapped to the room there is and cut with an ellipsis beyond it.
    """
    assert len(pictures) == len(rows), "a word for every row"
    assert all(len(row) == len(columns) for row in pictures), "a word for every column"
    cells = [[None if picture is None else _shrunk(picture) for picture in row] for row in pictures]
    plan = _plan(cells, rows, columns, title)
    sheet = Image.new("RGB", plan.size, PAPER)
    _write_words(ImageDraw.Draw(sheet), plan, title)
    for row, line in enumerate(cells):
        for column, cell in enumerate(line):
            _place(sheet, plan, row, column, cell)
    return sheet


@dataclass(frozen=True)
class _Plan:
    """Where everything goes, in pixels."""

    cell: tuple[int, int]
    left: int
    """Of the first column of pictures."""
    top: int
    """Of the first row of pictures."""
    size: tuple[int, int]
    font: Font
    large: Font
    labels: list[str]
    """The rows' words, wrapped."""
    heads: list[str]
    """The columns' words, wrapped."""

    def corner(self, row: int, column: int) -> tuple[int, int]:
        return self.left + column * (self.cell[0] + GAP), self.top + row * (self.cell[1] + GAP)


def _plan(cells: Pictures, rows: Sequence[str], columns: Sequence[str], title: str) -> _Plan:
    sizes = [picture.size for row in cells for picture in row if picture is not None] or [(LARGEST, LARGEST)]
    width, height = (max(size[axis] for size in sizes) for axis in (0, 1))
    points = max(13, min(18, width // 12))
    font, large = ImageFont.load_default(points), ImageFont.load_default(round(points * 1.6))
    labels = [_wrapped(text, font, max(width, 9 * points), height) for text in rows]
    heads = [_wrapped(text, font, width - points, max(height // 2, 5 * points)) for text in columns]
    label_room = max((_extent(text, font)[0] for text in labels), default=0)
    head_room = max((_extent(text, font)[1] for text in heads), default=0)
    left = MARGIN + (label_room + points if label_room else 0)
    top = MARGIN + (round(points * 3.2) if title else 0) + (head_room + points // 2 if head_room else 0)
    right = left + len(columns) * (width + GAP) - GAP + MARGIN
    right = max(right, MARGIN * 2 + _extent(title, large)[0])
    bottom = top + len(rows) * (height + GAP) - GAP + MARGIN
    return _Plan((width, height), left, top, (right, bottom), font, large, labels, heads)


def _write_words(draw: ImageDraw.ImageDraw, plan: _Plan, title: str) -> None:
    width, height = plan.cell
    draw.text((MARGIN, MARGIN), title, INK, plan.large, anchor="la")
    for row, text in enumerate(plan.labels):
        y = plan.corner(row, 0)[1] + (height - _extent(text, plan.font)[1]) // 2
        draw.multiline_text((MARGIN, y), text, INK, plan.font, spacing=_leading(plan.font))
    for column, text in enumerate(plan.heads):
        place = plan.corner(0, column)[0] + width // 2, plan.top - _extent("x", plan.font)[1] // 2
        draw.multiline_text(place, text, QUIET, plan.font, anchor="md", align="center", spacing=_leading(plan.font))


def _place(sheet: Image.Image, plan: _Plan, row: int, column: int, cell: Image.Image | None) -> None:
    (x, y), (width, height) = plan.corner(row, column), plan.cell
    if cell is None:
        sheet.paste(EMPTY, (x, y, x + width, y + height))
    else:
        sheet.paste(cell, (x + (width - cell.width) // 2, y + (height - cell.height) // 2))


def _shrunk(picture: Image.Image) -> Image.Image:
    shown = picture.convert("RGB")
    shown.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return shown


def _wrapped(text: str, font: Font, width: int, height: int) -> str:
    """The text in lines of at most `width` pixels, about equally long, as many as fit into `height`."""
    lines = _lines(text, font, width)
    fitting = max(1, height // _extent("x", font)[1])
    if len(lines) > fitting:
        return "\n".join([*lines[: fitting - 1], _cut(lines[fitting - 1], font, width)])
    for narrower in range(width, 0, -4):  # else the last line may hold a single word
        if len(even := _lines(text, font, narrower)) > len(lines):
            break
        lines = even
    return "\n".join(lines)


def _lines(text: str, font: Font, width: int) -> list[str]:
    return [line for part in text.splitlines() for line in _filled(part, font, width)]


def _filled(text: str, font: Font, width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines += _pieces(word, font, width)
    return lines


def _pieces(word: str, font: Font, width: int) -> list[str]:
    """The word, or where it is too long for a line, parts of it."""
    pieces = [""]
    for letter in word:
        if pieces[-1] and font.getlength(pieces[-1] + letter) > width:
            pieces.append("")
        pieces[-1] += letter
    return pieces


def _cut(line: str, font: Font, width: int) -> str:
    """The line with an ellipsis, at the end of a word where there is one."""
    while line and font.getlength(line + ELLIPSIS) > width:
        shorter = line.rpartition(" ")[0]
        line = shorter or line[:-1]
    return line.rstrip(" ,.") + ELLIPSIS


def _leading(font: Font) -> int:
    return round(font.getbbox("x")[3] * 0.3)


def _extent(text: str, font: Font) -> tuple[int, int]:
    """Width and height in pixels of wrapped text, every line as tall as any; 0 and 0 for none."""
    lines = text.split("\n") if text else []
    pitch = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), "x\nx", font, spacing=_leading(font))
    line = round((pitch[3] - font.getbbox("x")[3]) or 1)
    return round(max((font.getlength(part) for part in lines), default=0)), line * len(lines)
