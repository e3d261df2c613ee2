"""Keeping style (medium, manner, artist) out of captions: what is not captioned binds to the trigger."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

SHARE = 0.8
"""In this share of the captions a phrase counts as what the set has in common."""

RANKED_SHARE = 0.5
"""For this share of the pictures a style must be among those that the model ranks first."""

FEWEST = 10
"""Captions below which a set says nothing about what it has in common."""

KNOWN, COMMON, RANKED = "a word of style", "common to the set", "ranked first by the model"

BOILERPLATE = re.compile(
    r"^(?:(?:in )?(?:the|this|that|an?)\s+(?:\w+\s+)?(?:image|picture|scene)\s*(?:,\s*)?"
    r"(?:that\s+)?(?:(?:shows|showing|depicts|depicting|features|featuring|displays|contains|captures|portrays|presents|"
    r"of|is of|is showing|we see|we can see|there is|there are)\s+)|there (?:is|are) (?=an?\b|two\b|three\b|some\b))",
    re.IGNORECASE,
)
ARAFED = re.compile(r"\b(?:araffes?|arafed|araf)\b", re.IGNORECASE)
"""BLIP's well-known slip."""

ARTIST = re.compile(
    r"(?:,\s*|\s+)(?:art|artwork|painting|drawing|illustration|illustrated|painted|drawn|sketched)\s+by\s+[^,.;]+"
    r"|,\s*by\s+(?!an?\b|the\b|his\b|her\b|its\b|their\b)[^,.;]+",
    re.IGNORECASE,
)
MANNER = re.compile(
    r",?\s*\b(?:(?:painted|drawn|rendered|illustrated|done)\s+)?in\s+(?:the|an?)\s+(?:[\w'-]+\s+){0,3}(?:style|manner)\b"
    r"(?:\s+of\s+[^,.;]+)?",
    re.IGNORECASE,
)
LOOSE_END = re.compile(r"(?:\s*,)*\s+(?:and|with|in|on|of|a|an|the|by|at|to)$", re.IGNORECASE)


@dataclass(frozen=True)
class Lexicon:
    """The words of lexicon.yaml; see there what each list means."""

    mediums: frozenset[str]
    styles: frozenset[str]
    doubtful: frozenset[str]
    lead_in: re.Pattern[str]
    adjective: re.Pattern[str]

    def rankable(self) -> tuple[str, ...]:
        """Phrases for a model to compare pictures with, in a fixed order."""
        return tuple(sorted(self.mediums | self.styles | self.doubtful))


@cache
def lexicon() -> Lexicon:
    """The words that come with the package."""
    raw = yaml.safe_load(Path(__file__).with_name("lexicon.yaml").read_text(encoding="utf-8"))
    mediums, styles, doubtful = (frozenset(map(str, raw[name])) for name in ("mediums", "styles", "doubtful"))
    # No more than two words before the medium: "a man holding a painting of ..." has content in front of it.
    lead_in = rf"^(?:an?\s+|the\s+)?(?:black and white\s+)?(?:[\w'-]+\s+){{0,2}}?(?:{_any(mediums)})\s+"
    lead_in += r"(?:of|showing|depicting|featuring)\s+"
    adjective = rf",?\s*\b(?:{_any(styles)})[\s-]+(?:styled?|art\s*style|artwork)\b"
    flags = re.IGNORECASE
    return Lexicon(mediums, styles, doubtful, re.compile(lead_in, flags), re.compile(adjective, flags))


def without_boilerplate(caption: str) -> str:
    """A caption without "the image shows" and the like in front."""
    text = ARAFED.sub("", caption) if ARAFED.search(caption) else caption
    for _ in range(2):
        text = BOILERPLATE.sub("", text.strip(), count=1)
    return text if text == caption else tidy(text)


def prune(caption: str, set_wide: Mapping[str, str]) -> tuple[str, list[tuple[str, str]]]:
    """A caption without words of style; `set_wide` has further phrases -> why. Also what was removed, and why."""
    words, removed = lexicon(), []
    text = caption
    for pattern in (words.lead_in, MANNER, ARTIST, words.adjective):
        removed += [(_bare(found[0]), KNOWN) for found in pattern.finditer(text)]
        text = pattern.sub("", text)
    kept = []
    for part in text.split(","):
        bare = _bare(part)
        if bare in words.styles or bare in words.mediums:
            removed.append((bare, KNOWN))
        elif bare in set_wide:
            removed.append((bare, set_wide[bare]))
        else:
            kept.append(part)
    text = ",".join(kept)
    for phrase, why in set_wide.items():
        text, count = re.subn(rf"\b{re.escape(phrase)}\b", "", text, flags=re.IGNORECASE)
        removed += [(phrase, why)] * bool(count)
    return (tidy(text), removed) if removed else (caption, [])


def set_style(captions: Sequence[str], ranked: Sequence[Sequence[str]]) -> dict[str, str]:
    """Phrases that the set as a whole shows to be its style -> why.

    Those are the parts between commas that most captions share, the first part excepted, which names the subject; and
    of the lexicon's words those that most captions share, or that the model ranks first for most pictures.
    """
    if len(captions) < FEWEST:
        return {}
    words, found = lexicon(), {}
    parts = Counter(part for caption in captions for part in {_bare(one) for one in caption.split(",")[1:]} if part)
    found |= {part: COMMON for part, count in parts.items() if count >= SHARE * len(captions)}
    for phrase in sorted(words.doubtful, key=lambda one: (-len(one), one)):
        pattern = re.compile(rf"\b{re.escape(phrase)}\b", re.IGNORECASE)
        if sum(1 for caption in captions if pattern.search(caption)) >= SHARE * len(captions):
            found[phrase] = COMMON
    votes = Counter(style for styles in ranked for style in set(styles))
    least = RANKED_SHARE * len(captions)
    return found | {style: RANKED for style in words.doubtful if votes[style] >= least and style not in found}


def tidy(text: str) -> str:
    """What is left of a caption once phrases are gone: single spaces and commas, no loose word at the end."""
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"(?:\s*,)+", ",", text).strip(" ,;.")
    text = re.sub(r"\b(an?) (?:an?|the) ", r"\1 ", text)
    text = re.sub(r"\ban (?=[b-df-gj-np-tv-z]\w)", "a ", text)
    while shorter := LOOSE_END.search(text):
        text = text[: shorter.start()].rstrip(" ,")
    return text


def _bare(part: str) -> str:
    """A part as the lexicon would have it: without article, full stop or capitals."""
    return re.sub(r"^(?:an?|the)\s+", "", " ".join(part.lower().split()).strip(" .,;"))


def _any(words: Iterable[str]) -> str:
    return "|".join(re.escape(word) for word in sorted(words, key=lambda one: (-len(one), one)))
