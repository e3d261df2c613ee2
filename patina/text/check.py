"""What may be wrong with rows that can be trained on: repeats, contradictions, leaks, odd lengths, damaged text."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from patina.text.rows import Row

SHORT = 2
"""Characters below which an answer is odd, unless most answers are that short (labels are)."""
LONG, LONGER = 1000, 10
"""An answer of at least so many characters is odd when it is also so many times the median."""
QUOTED = 40
"""Characters of a text that a message shows."""


@dataclass(frozen=True)
class Doubt:
    """One kind of thing that deserves a look: training goes on with it, and is probably worse for it."""

    what: str
    """What was found, in the plural."""
    remedy: str
    where: tuple[str, ...]
    """Each case with its place."""


def check(rows: Sequence[Row], validation: Sequence[Row] = ()) -> list[Doubt]:
    """All doubts about rows, and about `validation` rows that training must not have seen; those without cases not."""
    doubts = [Doubt(what, remedy, tuple(find(rows))) for what, remedy, find in SEARCHES]
    doubts += [Doubt(what, remedy, tuple(matches(rows, pattern))) for what, remedy, pattern in DAMAGE]
    doubts += [Doubt(*LEAKED, tuple(_leaks(rows, validation)))]
    return [doubt for doubt in doubts if doubt.where]


def repeated(rows: Sequence[Row]) -> dict[int, int]:
    """Index of each row that repeats an earlier one exactly -> index of that one."""
    first: dict[Hashable, int] = {}
    return {at: first[said] for at, row in enumerate(rows) if first.setdefault(said := _said(row), at) != at}


def quoted(text: str) -> str:
    """The beginning of a text on one line."""
    line = " ".join(text.split())
    return f'"{line[:QUOTED]}..."' if len(line) > QUOTED else f'"{line}"'


def _said(row: Row) -> Hashable:
    return row.turns, row.text


def folded(text: str) -> str:
    """The text as people compare it: without case, width and white space."""
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text).casefold())


def _folded(row: Row) -> Hashable:
    return tuple((turn.role, folded(turn.text)) for turn in row.turns), folded(row.text)


def _asked(row: Row) -> Hashable:
    """What comes before the last answer; of raw text all of it."""
    return tuple((turn.role, folded(turn.text)) for turn in row.turns[:-1]), folded(row.text)


def _answer(row: Row) -> str:
    return row.turns[-1].text if row.turns else row.text


def _exact(rows: Sequence[Row]) -> Iterable[str]:
    for at, earlier in repeated(rows).items():
        yield f"{rows[at].place} repeats {rows[earlier].place}"


def _near(rows: Sequence[Row]) -> Iterable[str]:
    exact, first = repeated(rows), dict[Hashable, Row]()
    for at, row in enumerate(rows):
        earlier = first.setdefault(_folded(row), row)
        if earlier is not row and at not in exact:
            yield f"{row.place} repeats {earlier.place}"


def _contradictions(rows: Sequence[Row]) -> Iterable[str]:
    answers: dict[Hashable, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        if row.turns:
            answers[_asked(row)].setdefault(folded(_answer(row)), row)
    for several in answers.values():
        if len(several) > 1:
            places = ", ".join(row.place for row in several.values())
            question = next(iter(several.values())).turns[-2].text
            yield f"{places}: {quoted(question)} has {len(several)} answers"


def _short(rows: Sequence[Row]) -> Iterable[str]:
    answers = [row for row in rows if row.turns]
    short = [row for row in answers if len(_answer(row).strip()) < SHORT]
    if 2 * len(short) < len(answers):
        yield from (f"{row.place}: {quoted(_answer(row))}" for row in short)


def _long(rows: Sequence[Row]) -> Iterable[str]:
    answers = [row for row in rows if row.turns]
    usual = median([len(_answer(row)) for row in answers]) if answers else 0
    for row in answers:
        if len(_answer(row)) >= max(LONG, LONGER * usual):
            yield f"{row.place}: {len(_answer(row)):,} characters, where {usual:,.0f} are usual"


Find = Callable[[Sequence[Row]], Iterable[str]]
SEARCHES: tuple[tuple[str, str, Find], ...] = (
    ("rows that repeat an earlier one exactly", "--repair leaves them out", _exact),
    ("rows that repeat an earlier one but for case, spaces or width", "keep one of them", _near),
    ("questions with different answers", "keep the right one, or ask differently", _contradictions),
    (f"answers of less than {SHORT} characters", "see whether they are whole", _short),
    ("answers far longer than the others", "see whether several ran together", _long),
)
"""What is found, what to do about it, what finds it, a line a case."""

HIGH = re.escape(bytes(range(0x80, 0xC0)).decode("cp1252", errors="ignore")) + "\x80-\xbf"
"""What follows the first byte of a UTF-8 character, read as Western text; doubled, three such make a Chinese one. The
rest of the pattern is UTF-8 that went through GBK, in the one direction or there and back."""
DAMAGE: tuple[tuple[str, str, re.Pattern[str]], ...] = (
    (
        "texts with control characters, which nobody sees and the model would learn",
        "delete them",
        re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff]"),
    ),
    (
        "texts that were read in a wrong encoding once",
        "open the original and save it as UTF-8",
        re.compile(f"\ufffd|锟斤拷|烫烫烫|屯屯屯|[ÃÂ][{HIGH}]|â€|ï»¿|(?:[ä-é][{HIGH}]{{2}}){{2}}|[锛銆]"),
    ),
    (
        "texts with HTML in them",
        "write what a reader of the page would see",
        re.compile(
            r"</?(?:p|br|hr|div|span|a|img|table|tbody|tr|td|th|li|ul|ol|b|i|u|strong|em|font|h[1-6]|script|style)"
            r"(?:\s[^<>]*)?/?>|&(?:nbsp|amp|lt|gt|quot|#\d+);",
            re.IGNORECASE,
        ),
    ),
    (
        "texts that speak of being an AI",
        "see whether the model should learn it",
        re.compile(
            r"as an ai (?:language )?model|作为(?:一个|一名)?(?:AI|人工智能)(?:语言模型|助手|模型)", re.IGNORECASE
        ),
    ),
)
"""What is found, what to do about it, what such a text holds."""
LEAKED = (
    "validation rows that ask what a training row asks, and so measure memory",
    "take them out of one of the sets",
)


def matches(rows: Sequence[Row], pattern: re.Pattern[str]) -> Iterable[str]:
    """The places of rows that hold such a text, with the text about it."""
    for row in rows:
        for text in (*(turn.text for turn in row.turns), row.text):
            if found := pattern.search(text):
                start = max(0, found.start() - 10)
                yield f"{row.place}: {quoted(text[start : found.end() + 10])}"
                break


def _leaks(rows: Sequence[Row], validation: Sequence[Row]) -> Iterable[str]:
    known = {_asked(row): row for row in reversed(rows)}
    for row in validation:
        if earlier := known.get(_asked(row)):
            yield f"{row.place} asks what {earlier.place} asks"


def kinds(rows: Sequence[Row]) -> dict[str, int]:
    """How many rows there are of each kind."""
    counts = Counter("raw text" if not row.turns else _kind(row) for row in rows)
    return dict(counts.most_common())


def _kind(row: Row) -> str:
    answers = sum(turn.role == "assistant" for turn in row.turns)
    with_system = ", with system text" if row.turns[0].role == "system" else ""
    return ("one question and answer" if answers == 1 else "conversations of several turns") + with_system
