"""The shapes that rows come in, by their keys or headings: which field is the question, which the answer."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from patina.errors import PatinaError
from patina.text.records import Findings, Group, Record, blank

WORDS: Mapping[str, tuple[str, ...]] = {
    "question": (
        *("question", "q", "prompt", "instruction", "query", "ask", "user input", "user message"),
        *("问题", "问", "问句", "提问", "用户问题", "客户问题", "常见问题", "标准问题", "标准问", "指令", "提示词"),
        *("問題", "問", "提問", "提示詞"),
    ),
    "answer": (
        *("answer", "a", "response", "completion", "output", "reply", "target"),
        *("答案", "答", "回答", "回复", "答复", "应答", "标准答案", "参考答案", "客服回复", "助手回复", "输出"),
        *("回應", "回覆", "輸出"),
    ),
    "input": ("input", "输入", "輸入"),
    "system": ("system", "system prompt", "系统", "系统提示", "系统提示词", "系統"),
    "history": ("history", "历史", "历史对话", "歷史"),
    "conversation": (
        "conversation",
        "conversations",
        "messages",
        "dialogue",
        "dialog",
        "dialogs",
        "chat",
        "对话",
        "会话",
        "對話",
    ),
    "text": ("text", "content", "文本"),
}
"""Meaning -> the headings that have it, compared in any case and width, with spaces, `_` and `-` left out."""

SPEAKERS: Mapping[str, tuple[str, ...]] = {
    "question": ("user", "human", "用户", "客户", "用戶", "顾客"),
    "answer": ("assistant", "bot", "gpt", "ai", "助手", "客服"),
}
"""Headings that count where none of those above is there: a column of that name may as well hold who it was."""


class Shape(NamedTuple):
    """A row of facts about one manner of keeping examples."""

    name: str
    needs: tuple[str, ...]
    may: tuple[str, ...] = ()


SHAPES = (
    Shape("conversation", ("conversation",), ("system",)),
    Shape("question and answer", ("question", "answer"), ("input", "history", "system")),
    Shape("input and answer", ("input", "answer"), ("history", "system")),
    Shape("raw text", ("text",)),
)
"""In this order: the first whose needs are met."""


@dataclass(frozen=True)
class Layout:
    """How the fields of some records are to be read."""

    shape: Shape
    fields: Mapping[str, str]
    """Meaning -> heading."""

    def __str__(self) -> str:
        return f"{self.shape.name} ({', '.join(f'{meaning}: {heading}' for meaning, heading in self.fields.items())})"


def recognise(headings: Sequence[str], columns: Mapping[str, str] | None) -> Layout | None:
    """The layout that these headings have; None where they are not known, or two of them mean the same.

    `columns` (meaning -> heading) is the user's word and then decides alone.
    """
    return _recognise(tuple(headings), tuple(columns.items()) if columns else ())


@cache
def _recognise(headings: tuple[str, ...], columns: tuple[tuple[str, str], ...]) -> Layout | None:
    if columns:
        folded = {fold(heading): heading for heading in headings}
        found = {meaning: [folded[fold(heading)]] for meaning, heading in columns if fold(heading) in folded}
    else:
        found = {meaning: [h for h in headings if fold(h) in set(map(fold, words))] for meaning, words in WORDS.items()}
        for meaning, words in SPEAKERS.items():
            found[meaning] = found[meaning] or [h for h in headings if fold(h) in set(map(fold, words))]
    for shape in SHAPES:
        wanted = [found.get(meaning, []) for meaning in (*shape.needs, *shape.may)]
        if all(wanted[: len(shape.needs)]) and all(len(having) <= 1 for having in wanted):
            names = (*shape.needs, *shape.may)
            return Layout(shape, {name: having[0] for name, having in zip(names, wanted, strict=True) if having})
    return None


def columns_of(pairs: Sequence[str]) -> dict[str, str]:
    """Meaning -> heading, of `MEANING=HEADING`."""
    named = (pair.partition("=") for pair in pairs)
    return {meaning.strip(): heading.strip() for meaning, _, heading in named}


def check_columns(columns: Mapping[str, str]) -> None:
    """Raises PatinaError unless every key is a meaning and they make up a shape."""
    unknown = [meaning for meaning in columns if meaning not in WORDS]
    if unknown:
        raise PatinaError(f"text.columns: {unknown[0]!r} is no kind of field; write one of {', '.join(WORDS)}")
    if recognise(list(columns.values()), columns) is None:
        raise PatinaError(f"text.columns: {dict(columns)} is not enough; {COLUMNS}")


COLUMNS = "write text.columns: [question=HEADING, answer=HEADING] with the headings that hold them"


def layouts(groups: Sequence[Group], columns: Mapping[str, str] | None, findings: Findings) -> list[Layout | None]:
    """The layout of each group: by its headings, else guessed; None where it holds no examples, which is said.

    A group (sheet) that nobody can read is left out when another of the same file can be read, and a fault otherwise.
    """
    found = [_first(group, columns) for group in groups]
    any_known = any(found)
    for at, group in enumerate(groups):
        if found[at] is None and group.records:
            if any_known:
                findings.note(
                    f"{group.place}: left out, for its headings ({_headings(group)}) name no question and answer"
                )
            else:
                found[at] = None if columns else _guess(group, findings)
                if found[at] is None:
                    findings.fault(group.place, _unknown(group, columns))
    return found


def _first(group: Group, columns: Mapping[str, str] | None) -> Layout | None:
    """The layout of the first record that has one."""
    seen = dict.fromkeys(tuple(record.fields) for record in group.records)
    return next((layout for headings in seen if (layout := recognise(headings, columns))), None)


def _guess(group: Group, findings: Findings) -> Layout | None:
    """With exactly two columns of text the first is the question; a heading that is known keeps its meaning."""
    headings = dict.fromkeys(heading for record in group.records for heading in record.fields)
    texts = [heading for heading in headings if _wordy(group.records, heading)]
    if len(texts) != 2:
        return None
    answers, questions = (set(map(fold, (*WORDS[name], *SPEAKERS[name]))) for name in ("answer", "question"))
    if fold(texts[0]) in answers or fold(texts[1]) in questions:
        texts.reverse()
    findings.note(
        f"{group.place}: guessed that {texts[0]!r} is the question and {texts[1]!r} the answer; if not, "
        f"write text.columns: [question={texts[1]}, answer={texts[0]}]"
    )
    return Layout(SHAPES[1], {"question": texts[0], "answer": texts[1]})


def _wordy(records: Sequence[Record], heading: str) -> bool:
    """Whether at least half of what the column holds has a letter in it, so that numbers and dates do not count."""
    values = [value for record in records if not blank(value := record.fields.get(heading))]
    wordy = sum(isinstance(value, str) and any(c.isalpha() and c not in "年月日" for c in value) for value in values)
    return bool(values) and 2 * wordy >= len(values)


def _unknown(group: Group, columns: Mapping[str, str] | None) -> str:
    if columns:
        missing = [heading for heading in columns.values() if fold(heading) not in map(fold, group.records[0].fields)]
        return f"there is no column {', '.join(missing)}, only {_headings(group)}; correct text.columns"
    return f"which column is the question and which the answer? The headings are {_headings(group)}; {COLUMNS}"


def _headings(group: Group) -> str:
    headings = list(dict.fromkeys(heading for record in group.records for heading in record.fields))
    return ", ".join(headings[:20]) + (", ..." if len(headings) > 20 else "")


def fold(word: str) -> str:
    """The word as it is compared: NFKC, lower case, without spaces, `_`, `-` and colons."""
    return re.sub(r"[\s_\-:*]+", "", unicodedata.normalize("NFKC", word).casefold())
