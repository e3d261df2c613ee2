"""Rows held out of a training set to measure on: chosen by seed and content, so that a resume holds out the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from hashlib import sha256

from patina.errors import PatinaError
from patina.text.rows import Row


def split(rows: Sequence[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """The rows to train on, and about `share` (0 to 1) of all to measure on, both in their order.

    Rows that ask the same go together: an answer that was trained on would be measured as if it carried over. Which
    are held out depends on the seed and on what is asked, and not on the order of the rows. Raises PatinaError where
    there are too few different questions for both.
    """
    groups = defaultdict(list)
    for row in rows:
        groups[asked(row)].append(row)
    if len(groups) < 2:
        raise PatinaError(
            f"validation.split: train_data asks {len(groups)} different question(s), and two are needed to hold one "
            "out; give more rows, or name other rows as validation_data"
        )
    chosen = _chosen({question: len(same) for question, same in groups.items()}, share * len(rows), seed)
    kept = [row for row in rows if asked(row) not in chosen]
    return kept, [row for row in rows if asked(row) in chosen]


def asked(row: Row) -> str:
    """What a row asks first, or the whole of a raw text; spaces do not tell two of them apart."""
    said = next((turn.text for turn in row.turns if turn.role == "user"), row.text)
    return " ".join(said.split())


def _chosen(sizes: dict[str, int], wanted: float, seed: int) -> set[str]:
    """Questions with `wanted` rows together, or fewer where the next would be too many; at least one, never all."""
    drawn = sorted(sizes, key=lambda question: sha256(f"{seed}\n{question}".encode(errors="surrogatepass")).digest())
    chosen: set[str] = set()
    count = 0
    for question in drawn[:-1]:
        if count + sizes[question] <= wanted:
            chosen.add(question)
            count += sizes[question]
    return chosen or {min(drawn, key=lambda question: sizes[question])}
