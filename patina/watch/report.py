"""A run on one page that needs nothing else: each question with the base's answer and the tuned model's, step by step,
and the curve of the loss."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from patina.errors import PatinaError, printable
from patina.files import write_text
from patina.watch.thinned import thinned

if TYPE_CHECKING:
    from patina.watch.answers import Asked

ROWS = 24
"""Sampled steps that a question shows at most: the first, the last, and others evenly between them."""
POINTS = 400
"""Of a curve at most."""
WIDE, HIGH = 720, 200
"""Of the curve, in pixels."""
CURVES = (
    ("loss_smoothed", "training, smoothed", "#8a3b12", ""),
    ("validation_loss", "held out", "#1f5f8b", "6 4"),
)
"""Number in `metrics.jsonl`, what the legend calls it, colour, dashes."""
SIGN = '<meta name="generator" content="Patina, a run">'
"""By which the page is known again."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""Were something in the page ever more than text, a browser would neither run nor fetch it."""
STYLE = """body{font:15px/1.5 sans-serif;max-width:70em;margin:2em auto;padding:0 1em;background:#faf9f6;color:#33312e}
table{border-collapse:collapse;width:100%;margin-bottom:2em;background:#fff}
td,th{padding:.4em .8em;text-align:left;vertical-align:top;border:1px solid #dcd8d0;overflow-wrap:anywhere}
th{width:7em;font-weight:normal;color:#6b665e}td{white-space:pre-wrap}thead td{font-weight:bold}
.last td{background:#fff8e6}.none{color:#a09a90}svg{width:100%;max-width:780px}"""


def write(path: Path, name: str, asked: Sequence[Asked], known: Mapping[int, Mapping[str, str]], metrics: Path) -> None:
    """Write the page whole or not at all. `known`: answers by question, by step, the base's under 0.

    Raises PatinaError where a file is there that is no run's page, and OSError.
    """
    if path.is_file() and SIGN not in path.read_text(encoding="utf-8", errors="replace")[:1000]:
        raise PatinaError(f"{path} is not this run's and stays as it is")
    write_text(path, page(name, asked, known, _numbers(metrics)))


def page(
    name: str, asked: Sequence[Asked], known: Mapping[int, Mapping[str, str]], numbers: Sequence[Mapping[str, object]]
) -> str:
    """The HTML; what was asked and answered is text in it and nothing else."""
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">{SIGN}'
    head += f"<title>{_text(name)}</title><style>{STYLE}</style>"
    tables = "".join(_table(one, known) for one in asked)
    body = f"<h1>{_text(name)}</h1>{tables}{_figure(numbers)}"
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def inert(text: str) -> str:
    """Text that steers neither terminal nor page: spaces of any kind are spaces, the rest is escaped."""
    return printable(re.sub(r"[^\S\n]", " ", text.expandtabs(4)))


def _table(one: Asked, known: Mapping[int, Mapping[str, str]]) -> str:
    steps = thinned([step for step in sorted(known) if step], ROWS)
    rows = [_row("base", known.get(0, {}).get(one.question))]
    rows += [_row(f"step {step}", known[step].get(one.question), step == steps[-1]) for step in steps]
    if one.reference is not None:
        rows.append(_row("reference", one.reference))
    head = f'<thead><tr><th>question</th><td dir="auto">{_text(one.question)}</td></tr></thead>'
    return f"<table>{head}<tbody>{''.join(rows)}</tbody></table>"


def _row(head: str, answer: str | None, last: bool = False) -> str:
    cell = f'<td dir="auto">{_text(answer)}</td>' if answer else f'<td class="none">{_missing(answer)}</td>'
    return f"<tr{' class=last' * last}><th>{head}</th>{cell}</tr>"


def _missing(answer: str | None) -> str:
    return "(not asked)" if answer is None else "(said nothing)"


def _figure(numbers: Sequence[Mapping[str, object]]) -> str:
    """The losses over the steps, with the lowest and the highest written at the edge."""
    curves = [(_points(numbers, key), *how) for key, *how in CURVES]
    places = [point for points, *_ in curves for point in points]
    if len(places) < 2:
        return ""
    steps, losses = zip(*places, strict=True)
    left, right, low, high = min(steps), max(steps), min(losses), max(losses)
    lines, legend = [], []
    for points, label, colour, dashes in curves:
        if points:
            drawn = " ".join(
                f"{WIDE * (step - left) / (right - left or 1):.1f},{HIGH * (high - loss) / (high - low or 1):.1f}"
                for step, loss in thinned(points, POINTS)
            )
            look = f'fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"'
            lines.append(f'<polyline {look} points="{drawn}"/>')
            legend.append(f'<span style="color:{colour}">{label}</span>')
    frame = f'<path d="M0 0V{HIGH}H{WIDE}" fill="none" stroke="#a09a90"/>'
    words = f'<text x="-8" y="10" text-anchor="end">{high:.3g}</text>'
    words += f'<text x="-8" y="{HIGH}" text-anchor="end">{low:.3g}</text>'
    words += f'<text x="0" y="{HIGH + 18}">step {left:g}</text>'
    words += f'<text x="{WIDE}" y="{HIGH + 18}" text-anchor="end">{right:g}</text>'
    box = f'viewBox="-60 -10 {WIDE + 70} {HIGH + 36}" font-size="13" role="img" aria-label="loss"'
    return f"<h2>Loss</h2><p>{', '.join(legend)}</p><svg {box}>{frame}{''.join(lines)}{words}</svg>"


def _points(numbers: Sequence[Mapping[str, object]], key: str) -> list[tuple[float, float]]:
    found = [(line.get("step"), line.get(key)) for line in numbers]
    return [(x, y) for x, y in found if isinstance(x, int | float) and isinstance(y, int | float)]


def _numbers(metrics: Path) -> list[Mapping[str, object]]:
    """The lines of `metrics.jsonl`; none where there is no such file yet."""
    if not metrics.is_file():
        return []
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").split("\n") if line]
    return [line for line in lines if isinstance(line, dict)]


def _text(text: str) -> str:
    return html.escape(inert(text))
