"""How near answers come to the ones that were wanted: exact matches, BLEU, ROUGE-L, and JSON with its keys."""

from __future__ import annotations

import re
from collections.abc import Sequence

from patina.text.jsons import parsed

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Ranges of Chinese characters, for a regular expression."""
WORD = re.compile(rf"[{HAN}]|[^\W{HAN}]+")
"""A Chinese character, or a word in any other writing."""


def scores(said: Sequence[str], wanted: Sequence[str]) -> dict[str, float]:
    """What the answers are worth as a whole, by name; BLEU of 100, the others of 1.

    Of JSON only those count where a JSON object was wanted; where none was, nothing is said of it.
    """
    assert len(said) == len(wanted) > 0
    pairs = list(zip(said, wanted, strict=True))
    found = {
        "exact": _mean([float(one.strip() == other.strip()) for one, other in pairs]),
        "bleu": bleu(said, wanted),
        "rouge_l": _mean([rouge_l(one, other) for one, other in pairs]),
    }
    objects = [(parsed(one), facts) for one, other in pairs if isinstance(facts := parsed(other), dict)]
    if objects:
        found["json_valid"] = _mean([float(isinstance(one, dict)) for one, _ in objects])
        found["json_keys"] = _mean([_covered(one, facts) for one, facts in objects])
    return found


def bleu(said: Sequence[str], wanted: Sequence[str]) -> float:
    """BLEU of all together, 0 to 100, as sacrebleu computes it (Papineni et al. 2002, Post 2018).

    Where the wanted answers are mostly Chinese, it is of their characters. Where all answers are shorter than four
    words, it is of as many as they have; otherwise it would be 0.
    """
    from sacrebleu.metrics.bleu import BLEU  # deferred: it takes a quarter of a second, and few runs ask for it

    measure = BLEU(tokenize="zh" if _mostly_chinese(wanted) else "13a", effective_order=True, force=True)
    return measure.corpus_score(said, [wanted]).score


def rouge_l(said: str, wanted: str) -> float:
    """ROUGE-L's F1, 0 to 1 (Lin 2004): of words in lower case, of characters where it is Chinese."""
    ours, theirs = (WORD.findall(text.lower()) for text in (said, wanted))
    return 2 * common(ours, theirs) / (len(ours) + len(theirs)) if ours or theirs else 1.0


def common(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest common subsequence, a whole row of the table at a time (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for at, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << at
    every = (1 << len(one)) - 1
    row = every
    for word in other:
        met = row & places.get(word, 0)
        row = (row + met | row - met) & every
    return len(one) - row.bit_count()


def _mostly_chinese(texts: Sequence[str]) -> bool:
    words = [word for text in texts for word in WORD.findall(text)]
    return 2 * sum(bool(re.match(f"[{HAN}]", word)) for word in words) > len(words)


def _covered(said: object, facts: dict[str, object]) -> float:
    """The share of the wanted keys that are there, 0 where there is no object."""
    if not isinstance(said, dict):
        return 0.0
    return len(facts.keys() & said.keys()) / len(facts) if facts else 1.0


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)
