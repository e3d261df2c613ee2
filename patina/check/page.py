"""The findings as one page that needs nothing else, and the pictures as a contact sheet."""

import base64
import html
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from patina.check.findings import Finding, grouped
from patina.check.pictures import Checked
from patina.check.records import Record
from patina.data.images import open_image
from patina.errors import PatinaError, printable
from patina.files import replacing, write_text
from patina.watch.sheet import contact_sheet

FILES = ("report.html", "sheet.png")
FLAGGED = 200
"""Pictures of a set that the page shows at most."""
EDGE = 128
"""Longest edge of a picture on page and sheet, in pixels."""
ACROSS, DOWN = 10, 10
"""Pictures on the sheet at most, taken evenly from all."""
STYLE = """body{font:15px/1.5 sans-serif;max-width:70em;margin:2em auto;padding:0 1em;background:#faf9f6;color:#33312e}
table{border-collapse:collapse}td,th{padding:.2em .8em .2em 0;text-align:left;vertical-align:top;
overflow-wrap:anywhere}img{max-width:128px}"""


def check_output(output: Path, pictures: Path, force: bool) -> None:
    """Raises PatinaError where the report would lie among the pictures, or on files that are there without `force`."""
    if output.resolve().is_relative_to(pictures.resolve()):
        raise PatinaError(f"{output}: lies in the folder of pictures; give --output a folder outside {pictures}")
    for name in FILES:
        if (output / name).exists() and not force:
            raise PatinaError(f"{output / name} is there already; give another folder, or --force to write over it")


def write_report(sets: Sequence[Checked], output: Path) -> None:
    """Write `report.html` and `sheet.png`, each whole or not at all."""
    write_text(output / FILES[0], page(sets))
    if records := [record for checked in sets for record in checked.pictures]:
        with replacing(output / FILES[1]) as part:
            sheet(records).save(part, format="PNG")


def page(sets: Sequence[Checked]) -> str:
    """The HTML, a heading for each set; names and captions in it are text and nothing else."""
    head = f'<meta charset="utf-8"><title>Pictures checked</title><style>{STYLE}</style>'
    body = "".join(part for checked in sets for part in _parts(checked))
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def _parts(checked: Checked) -> Iterator[str]:
    thumbnails = _thumbnails(checked)
    yield f"<h1>{_text(str(checked.folder))}</h1><p>{len(checked.pictures)} pictures</p>{_buckets(checked)}"
    for level, title, findings in grouped(checked.findings):
        rows = "".join(_row(one, thumbnails) for one in findings)
        yield f"<h2>{level}: {_text(title)} ({len(findings)})</h2><table>{rows}</table>"


def sheet(records: Sequence[Record]) -> Image.Image:
    """At most 100 pictures of all, each row headed by the place of its first."""
    every = max(1, -(-len(records) // (ACROSS * DOWN)))
    shown = records[::every]
    cells: list[Image.Image | None] = [_small(one.path) for one in shown]
    cells += [None] * (-len(cells) % ACROSS)
    rows = [cells[at : at + ACROSS] for at in range(0, len(cells), ACROSS)]
    heads = [str(at * ACROSS * every + 1) for at in range(len(rows))]
    return contact_sheet(rows, heads, [""] * ACROSS, f"{len(shown)} of {len(records)} pictures")


def _buckets(checked: Checked) -> str:
    rows = "".join(f"<tr><td>{w} x {h}</td><td>{number}</td></tr>" for (w, h), number in checked.buckets.items())
    return f"<h2>Buckets</h2><table><tr><th>size</th><th>pictures</th></tr>{rows}</table>"


def _row(finding: Finding, thumbnails: dict[str, str]) -> str:
    picture = f'<img src="{thumbnails[finding.name]}" alt="">' if finding.name in thumbnails else ""
    return f"<tr><td>{picture}</td><td>{_text(finding.name)}</td><td>{_text(finding.sentence)}</td></tr>"


def _thumbnails(checked: Checked) -> dict[str, str]:
    readable = {one.path.relative_to(checked.folder).as_posix(): one.path for one in checked.pictures}
    flagged: Sequence[str] = list(dict.fromkeys(one.name for one in checked.findings if one.name in readable))
    return {name: _uri(readable[name]) for name in flagged[:FLAGGED]}


def _uri(path: Path) -> str:
    stream = io.BytesIO()
    _small(path).save(stream, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _small(path: Path) -> Image.Image:
    picture = open_image(path, small=EDGE)
    picture.thumbnail((EDGE, EDGE))
    return picture


def _text(text: str) -> str:
    return html.escape(printable(text))
