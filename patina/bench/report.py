"""What was measured, as rows of a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

GB = 2**30


@dataclass(frozen=True)
class Row:
    """One case, done by one side."""

    case: str
    title: str
    side: str
    error: str | None = None
    """Why there are no figures."""
    milliseconds: float | None = None
    """A step in the steady state, by the clock on the wall."""
    images_per_second: float | None = None
    gpu_bytes: int | None = None
    """Most that torch's allocator had given out at a time, from the first weight loaded on."""
    host_bytes: int | None = None
    share: float | None = None
    """Of what the chip could do at most."""
    start_seconds: float | None = None
    """From the command to the end of the first step."""
    whole_seconds: float | None = None
    """From the command to the exported file."""
    times: float | None = None
    """How many times as fast as the plain loop: the whole job where that is asked for, else a step."""


HEAD = ("case", "", "images/s", "ms a step", "GPU GB", "RAM GB", "of the limit", "start s", "whole s", "times")
WIDTHS = (55, 7, 8, 9, 6, 6, 12, 7, 7, 5)


def line(cells: Sequence[str]) -> str:
    """A row for the terminal; texts to the left, numbers to the right."""
    padded = [cell.ljust(width) for cell, width in zip(cells[:2], WIDTHS, strict=False)]
    return "  ".join(padded + [cell.rjust(width) for cell, width in zip(cells[2:], WIDTHS[2:], strict=False)]).rstrip()


def markdown(rows: Sequence[Row], whole: Sequence[str]) -> Iterator[str]:
    """The table, line by line; `whole` names the cases whose whole job is the figure."""
    yield f"| {' | '.join(HEAD)} |"
    yield f"|{'---|' * 2}{'---:|' * (len(HEAD) - 2)}"
    for row in rows:
        yield f"| {' | '.join(cells(row, whole=row.case in whole))} |"


def cells(row: Row, *, whole: bool) -> list[str]:
    """A row's texts in the order of HEAD."""
    if row.error:
        return [row.title, row.side, row.error, *[""] * (len(HEAD) - 3)]
    return [
        row.title,
        row.side,
        _number(row.images_per_second, 1),
        _number(row.milliseconds, 1),
        _number(row.gpu_bytes and row.gpu_bytes / GB, 1),
        _number(row.host_bytes and row.host_bytes / GB, 1),
        "" if row.share is None else f"{row.share:.1%}",
        _number(row.start_seconds, 1),
        _number(row.whole_seconds, 1) if whole else "",
        _number(row.times, 2),
    ]


def _number(value: float | None, digits: int) -> str:
    return "" if not value else f"{value:.{digits}f}"
