"""Rules about pictures: repeated, not what they seem, or of a shape or quality that training suffers from."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median

from patina.check.findings import WARNING, Finding
from patina.check.near import alike
from patina.check.records import Record
from patina.data.buckets import Buckets, Fit, fit, growth

MUCH = 0.2
"""Share of a picture whose loss is worth a word: a head may be gone."""
FEWEST = 10
"""Pictures below which a set says nothing about what is usual in it."""
FAR = 3.5
"""Spreads from the median, in logarithms, beyond which a picture is unlike its set (Iglewicz and Hoaglin 1993)."""
LEAST_SPREAD = 0.25
"""Taken for the spread of sets that are more alike than this: they too vary by accident."""
KINDS = {
    **{".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF"},
    **{".tif": "TIFF", ".tiff": "TIFF", ".avif": "AVIF"},
}


def picture_findings(records: Sequence[Record], buckets: Buckets, folder: Path) -> list[Finding]:
    """What these rules find; `buckets` are the run's."""
    names = [one.path.relative_to(folder).as_posix() for one in records]
    found = [*_repeats(records, names), *_unlike(records, names)]
    for record, name in zip(records, names, strict=True):
        found += [Finding(rule, WARNING, name, said) for rule, said in _single(record, buckets)]
    return found


def _repeats(records: Sequence[Record], names: Sequence[str]) -> Iterable[Finding]:
    first: dict[bytes, int] = {}
    exact = {at: first[one.digest] for at, one in enumerate(records) if first.setdefault(one.digest, at) != at}
    for at, earlier in exact.items():
        yield Finding("duplicate", WARNING, names[at], f"is the same file as {names[earlier]}")
    for at, earlier, mirror in alike(records):
        if at not in exact:
            rule, what = ("mirrored duplicate", "the mirror image of ") if mirror else ("near duplicate", "")
            yield Finding(rule, WARNING, names[at], f"looks like {what}{names[earlier]}; keep one of them")


def _single(record: Record, buckets: Buckets) -> Iterable[tuple[str, str]]:
    """(rule, sentence) of what one picture shows by itself."""
    if record.frames != 1:
        yield "animated", f"has {record.frames or 'damaged further'} frames; save the one that is meant as a picture"
    if KINDS.get(record.path.suffix.lower(), record.kind) != record.kind:
        yield "extension", f"is {record.kind}; it is read all the same, and other programs may refuse it"
    how = fit(record.size, buckets)
    width, height = record.size
    if growth(how) > 1:
        yield "tiny", f"{width} x {height}, scaled up {growth(how):.2g} times to {how.bucket[0]} x {how.bucket[1]}"
    elif is_small(how, buckets):
        yield "small", f"{width} x {height}, trained at {how.bucket[0]} x {how.bucket[1]}; find a larger one"
    if loses_much(how):
        yield "cropped", f"{width} x {height}, of which {how.kept:.0%} are kept; crop it yourself"


def is_small(how: Fit, buckets: Buckets) -> bool:
    """Whether the picture's bucket has less than half of the pixels that a run of this resolution trains."""
    return 2 * math.prod(how.bucket) < buckets.resolution**2


def loses_much(how: Fit) -> bool:
    """Whether so much of a picture is cut off that what it is of may be gone."""
    return 1 - how.kept > MUCH


def _unlike(records: Sequence[Record], names: Sequence[str]) -> Iterable[Finding]:
    flat = _far_below(records, lambda one: one.spread)
    for at in sorted(flat):
        yield Finding("flat", WARNING, names[at], "has hardly any contrast; see whether it is empty")
    for at in sorted(_far_below(records, lambda one: one.sharpness) - flat):
        yield Finding("blurry", WARNING, names[at], "has far less detail than the others; see whether it is blurred")


def _far_below(records: Sequence[Record], value: Callable[[Record], float]) -> set[int]:
    if len(records) < FEWEST:
        return set()
    logs = [math.log(value(one) + 0.1) for one in records]
    usual = median(logs)
    spread = max(1.4826 * median([abs(one - usual) for one in logs]), LEAST_SPREAD)
    return {at for at, one in enumerate(logs) if one < usual - FAR * spread}
