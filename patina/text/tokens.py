"""How long rows are for a model: tokens of what is said, by the tokenizer of its base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from patina.errors import PatinaError
from patina.text.rows import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Lengths:
    """Tokens a row, without the few that a chat template adds to each turn."""

    percentiles: dict[int, int]
    """Percent -> the least length that so many percent of the rows do not exceed."""
    longest: int
    place: str
    """Where the longest row stands."""
    total: int


def lengths(rows: Sequence[Row], folder: Path) -> Lengths:
    """Measure `rows`, at least one, by the tokenizer saved in `folder`. Raises PatinaError where there is none."""
    tokenizer = _tokenizer(folder)
    texts = [["".join(turn.text for turn in row.turns), row.text] for row in rows]
    counts = [sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in row) for row in texts]
    ordered = sorted(counts)
    nearest = {percent: ordered[-(-percent * len(ordered) // 100) - 1] for percent in PERCENTILES}
    return Lengths(nearest, ordered[-1], rows[counts.index(ordered[-1])].place, sum(counts))


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer  # deferred: takes seconds to import

    if not folder.is_dir():
        raise PatinaError(f"{folder}: is no folder; give the folder of a model, with its tokenizer_config.json in it")
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise PatinaError(f"{folder}: holds no tokenizer that can be loaded ({error})") from error
