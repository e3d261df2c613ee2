"""A set of pictures with captions, checked in one pass; nothing of it is changed."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from patina.check.findings import ERROR, WARNING, Finding
from patina.check.looks import picture_findings
from patina.check.records import Record, look_all
from patina.check.wording import caption_findings, read_captions
from patina.data.buckets import Size, fit
from patina.data.folders import find_parts


class Checked(NamedTuple):
    """What was looked at and what was found."""

    folder: Path
    pictures: list[Record]
    findings: list[Finding]
    buckets: dict[Size, int]
    """Bucket (width, height) -> readable pictures that fall into it, in order of width."""


def check_pictures(folder: Path, table: Path | None, trigger: str | None, sizes: Sequence[Size]) -> Checked:
    """Look at the pictures of a folder and at those that the table names elsewhere in it; `sizes` are the buckets.

    Raises PatinaError where there is no such folder, or no picture in it.
    """
    images = [image for part in find_parts(folder) for image in part.images]
    captions, found = read_captions(images, folder, table)
    paths = dict.fromkeys([*images, *(folder / name for name in captions)])
    records: list[Record] = []
    for path, seen in look_all(list(paths)):
        if isinstance(seen, Record):
            records.append(seen)
            continue
        name = path.relative_to(folder).as_posix()
        level = ERROR if captions.get(name) else WARNING  # without a caption no run opens it
        found.append(Finding("unreadable", level, name, str(seen)))
    found += picture_findings(records, sizes, folder)
    found += caption_findings([path.relative_to(folder).as_posix() for path in paths], captions, trigger)
    counts = Counter(fit(one.size, sizes).bucket for one in records)
    return Checked(folder, records, found, dict(sorted(counts.items())))
