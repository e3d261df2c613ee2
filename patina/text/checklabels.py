"""What may be wrong with labelled texts that can be trained on: contradictions, rare labels, repeats, leaks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

from patina.text.check import DAMAGE, Doubt, folded, matches, quoted, repeated
from patina.text.rows import Row

RARE = 10
"""A label with so many times fewer rows than the commonest one is hardly learnt."""

Find = Callable[[Sequence[Row]], Iterable[str]]


def check_labels(rows: Sequence[Row], validation: Sequence[Row] = ()) -> list[Doubt]:
    """All doubts about labelled rows, and about `validation` rows that training must not have seen."""
    doubts = [Doubt(what, remedy, tuple(find(rows))) for what, remedy, find in SEARCHES]
    doubts += [Doubt(what, remedy, tuple(matches(rows, pattern))) for what, remedy, pattern in DAMAGE]
    doubts += [Doubt(*LEAKED, tuple(_leaks(rows, validation)))]
    return [doubt for doubt in doubts if doubt.where]


def counts(rows: Sequence[Row]) -> dict[str, int]:
    """Label -> how many rows have it, the commonest first."""
    return dict(Counter(row.label for row in rows).most_common())


def _contradictions(rows: Sequence[Row]) -> Iterable[str]:
    labels: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        labels[folded(row.text)].setdefault(row.label, row)
    for several in labels.values():
        if len(several) > 1:
            places = ", ".join(row.place for row in several.values())
            yield f"{places}: {quoted(next(iter(several.values())).text)} is {' and '.join(several)}"


def _repeats(rows: Sequence[Row]) -> Iterable[str]:
    for at, earlier in repeated(rows).items():
        if rows[at].label == rows[earlier].label:
            yield f"{rows[at].place} repeats {rows[earlier].place}"


def _rare(rows: Sequence[Row]) -> Iterable[str]:
    found = counts(rows)
    most = max(found.values(), default=0)
    for label, count in found.items():
        if RARE * count <= most:
            yield f"{label}: {count:,} of {len(rows):,} rows, where the commonest label has {most:,}"


def _alike(rows: Sequence[Row]) -> Iterable[str]:
    spellings: dict[str, list[str]] = defaultdict(list)
    for label in counts(rows):
        spellings[folded(label)].append(label)
    yield from (" and ".join(several) for several in spellings.values() if len(several) > 1)


def _leaks(rows: Sequence[Row], validation: Sequence[Row]) -> Iterable[str]:
    known = {folded(row.text): row for row in reversed(rows)}
    for row in validation:
        if earlier := known.get(folded(row.text)):
            yield f"{row.place} is the text of {earlier.place}"


SEARCHES: tuple[tuple[str, str, Find], ...] = (
    ("texts with different labels", "keep the right one", _contradictions),
    ("labels that differ in case, spaces or width alone", "spell them alike, or they are learnt as two", _alike),
    ("labels that are rare", "give more rows of them; watch macro-F1, which accuracy hides", _rare),
    ("rows that repeat an earlier one exactly", "keep one of them", _repeats),
)
"""What is found, what to do about it, what finds it, a line a case."""
LEAKED = (
    "validation rows with the text of a training row, which so measure memory",
    "take them out of one of the sets",
)
