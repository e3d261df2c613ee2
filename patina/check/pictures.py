"""A set of pictures with captions, checked in one pass; nothing of it is changed."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from patina.check.findings import ERROR, WARNING, Finding
from patina.check.looks import picture_findings
from patina.check.records import Record, look_all
from patina.check.wording import caption_findings, read_captions
from patina.data.buckets import Buckets, Size, fit
from patina.data.folders import find_parts, leading_out, read_unasked

LINK = "leads out of the folder; put the file itself there, or write dataset.allow_links: true"


class Checked(NamedTuple):
    """What was looked at and what was found."""

    folder: Path
    pictures: list[Record]
    findings: list[Finding]
    buckets: dict[Size, int]
    """Bucket (width, height) -> readable pictures that fall into it, in order of width."""


def check_pictures(
    folder: Path,
    table: Path | None,
    trigger: str | None,
    buckets: Buckets,
    lines: str = "first",
    allow_links: bool = False,
) -> Checked:
    """Look at the pictures of a folder and at those that the table names elsewhere in it; `buckets` are the run's.

    `lines`: which captions of a picture with several are looked at, as `dataset.caption_lines` has it. Links out of the
    folder are followed only with `allow_links`. Raises PatinaError where there is no such folder, or no picture in it.
    """
    parts = find_parts(folder)
    images = [image for part in parts for image in part.images]
    named = {image.relative_to(folder).as_posix() for part in parts if part.caption for image in part.images}
    out = [] if allow_links else leading_out(read_unasked(images, folder), folder)
    strange = {path.with_suffix("") for path in out}
    images = [image for image in images if image.with_suffix("") not in strange]
    unread = [path.name for path in out]
    captions, found = read_captions(images, folder, table, lines, left_out=unread, named=bool(named))
    paths = dict.fromkeys([*images, *(folder / name for name in captions)])
    if not allow_links:
        out += leading_out([path for path in paths if path not in out], folder)
        paths = dict.fromkeys(path for path in paths if path not in out)
    found += [Finding("link", ERROR, path.relative_to(folder).as_posix(), LINK) for path in out]
    records: list[Record] = []
    for path, seen in look_all(list(paths)):
        if isinstance(seen, Record):
            records.append(seen)
            continue
        name = path.relative_to(folder).as_posix()
        level = ERROR if captions.get(name) or name in named else WARNING  # without a caption no run opens it
        found.append(Finding("unreadable", level, name, str(seen)))
    found += picture_findings(records, buckets, folder)
    names = [path.relative_to(folder).as_posix() for path in paths]
    found += caption_findings([name for name in names if captions.get(name) or name not in named], captions, trigger)
    counts = Counter(fit(one.size, buckets).bucket for one in records)
    return Checked(folder, records, found, dict(sorted(counts.items())))
