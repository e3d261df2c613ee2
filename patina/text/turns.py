"""A record read by its layout: a conversation of user and assistant, or raw text; what is missing is a fault."""

import json
from collections.abc import Mapping, Sequence

from patina.text.records import Findings, Record, Spoiled, blank
from patina.text.rows import Role, Row, Turn
from patina.text.shapes import SPEAKERS, WORDS, Layout, fold

ROLES: Mapping[str, Role] = {
    **dict.fromkeys(("system", "developer", "系统", "系統"), "system"),
    **dict.fromkeys(("user", "human", "prompter", "q", "用户", "用戶", "客户", "问", "問"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "chatgpt", "model", "ai", "a", "助手", "客服", "答"), "assistant"),
}
"""What speakers are called in the wild -> what they are."""
SPEAKER, SPEECH = ("role", "from", "speaker"), ("content", "value", "text")
KINDS = {int: "a number", float: "a number", bool: "true or false", dict: "an object", list: "a list"}


class Unusable(ValueError):
    """One record cannot be used: where, and what to do."""

    def __init__(self, place: str, text: str) -> None:
        super().__init__(text)
        self.place, self.text = place, text


def build(record: Record, layout: Layout, findings: Findings) -> Row | None:
    """The record as a row; None where it is a fault, which is then among the findings."""
    try:
        place = record.cells.get(layout.fields[layout.shape.needs[0]], record.place)
        if "text" in layout.fields:
            return Row((), place, _text(record, layout.fields["text"], "text"))
        turns = _conversation(record, layout) if "conversation" in layout.fields else _pair(record, layout)
        _sound(turns, place)
        return Row(tuple(turns), place)
    except Unusable as fault:
        findings.fault(fault.place, fault.text)
        return None


def _pair(record: Record, layout: Layout) -> list[Turn]:
    """Alpaca's triples and all that are fewer: the input follows the instruction on a line of its own."""
    asking = [layout.fields[name] for name in ("question", "input") if name in layout.fields]
    parts = [text for heading in asking if (text := _maybe(record, heading)).strip()]
    if not parts:
        _text(record, asking[0], "question")
    question = "\n".join(parts)
    answer = _text(record, layout.fields["answer"], "answer")
    return [*_system(record, layout), *_history(record, layout), Turn("user", question), Turn("assistant", answer)]


def _system(record: Record, layout: Layout) -> list[Turn]:
    text = _maybe(record, layout.fields["system"]) if "system" in layout.fields else ""
    return [Turn("system", text)] if text.strip() else []


def _history(record: Record, layout: Layout) -> list[Turn]:
    """Earlier questions and answers, as LLaMA-Factory keeps them: [[question, answer], ...]."""
    heading = layout.fields.get("history")
    if heading is None or blank(record.fields.get(heading)):
        return []
    place, turns = record.at(heading), []
    for at, pair in enumerate(_list(record, heading)):
        if not (isinstance(pair, list) and len(pair) == 2):
            raise Unusable(place, f"entry {at} is not a pair; write [question, answer]")
        turns += [Turn("user", _said(pair[0], f"{place}[{at}]", "question"))]
        turns += [Turn("assistant", _said(pair[1], f"{place}[{at}]", "answer"))]
    return turns


def _conversation(record: Record, layout: Layout) -> list[Turn]:
    heading, turns = layout.fields["conversation"], _system(record, layout)
    items = _list(record, heading)
    if not items:
        raise Unusable(record.at(heading), "the conversation is empty; write one or delete the row")
    for at, item in enumerate(items):
        place = f"{record.at(heading)}[{at}]"
        if not isinstance(item, dict):
            raise Unusable(place, 'is not an object; write {"role": ..., "content": ...}')
        spoken = _spoken(item, place) if _key(item, SPEAKER) else _exchange(item, place)
        turns += _without_repeated_system(spoken, turns)
    return turns


def _spoken(item: Mapping[str, object], place: str) -> list[Turn]:
    """One turn: {"role", "content"} as OpenAI writes it, or {"from", "value"} as ShareGPT does."""
    speaker, speech = _key(item, SPEAKER), _key(item, SPEECH)
    role = ROLES.get(fold(str(item[speaker]))) if speaker else None
    if role is None:
        raise Unusable(place, f"the role {item.get(speaker or '')!r} is not known; write system, user or assistant")
    if speech is None:
        raise Unusable(
            place, f"says nothing; write what the {role} says as {SPEECH[0] if speaker == 'role' else SPEECH[1]}"
        )
    return [Turn(role, _said(_joined(item[speech], place), place, f"{role}'s text"))]


def _exchange(item: Mapping[str, object], place: str) -> list[Turn]:
    """A question with its answer: {"system"?, "input", "output"}, {"human", "assistant"}."""
    asked = _key(item, (*WORDS["input"], *WORDS["question"], *SPEAKERS["question"]))
    answered = _key(item, (*WORDS["answer"], *SPEAKERS["answer"]))
    if asked is None or answered is None:
        raise Unusable(place, f'has the keys {", ".join(item)}; write {{"role": ..., "content": ...}}')
    system = item.get(_key(item, WORDS["system"]) or "")
    first = [] if blank(system) else [Turn("system", _said(system, place, "system text"))]
    pair = [
        Turn("user", _said(item[asked], place, "question")),
        Turn("assistant", _said(item[answered], place, "answer")),
    ]
    return [*first, *pair]


def _without_repeated_system(spoken: list[Turn], before: Sequence[Turn]) -> list[Turn]:
    """Later exchanges may repeat the system text; another one goes before the question, as there is only one system."""
    if len(spoken) < 3 or not before:
        return spoken
    system, user, *rest = spoken
    if before[0] == system:
        return [user, *rest]
    return [Turn("user", f"{system.text}\n{user.text}"), *rest]


def _sound(turns: Sequence[Turn], place: str) -> None:
    """Raise Unusable unless the speakers alternate and the assistant has the last word."""
    talk = list(turns[1:] if turns[0].role == "system" else turns)
    for at, turn in enumerate(talk):
        expected = ("user", "assistant")[at % 2]
        if turn.role != expected:
            number = at + 1 + len(turns) - len(talk)
            raise Unusable(place, f"turn {number} is the {turn.role}'s where the {expected}'s is due; {ALTERNATE}")
    if len(talk) % 2 or not talk:
        raise Unusable(place, "the last question has no answer; write one or delete the question")


ALTERNATE = "system (once, first) is followed by user, assistant, user, assistant: join or delete turns"


def _list(record: Record, heading: str) -> list[object]:
    """A field that holds a list; in tables, which have texts alone, the list as JSON."""
    value = record.fields.get(heading)
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise Unusable(record.at(heading), f"the list is broken JSON ({error})") from error
    if isinstance(value, list):
        return value
    raise Unusable(record.at(heading), f"is {_kind(value)}, not a list of turns; {EXAMPLE}")


EXAMPLE = 'write [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]'


def _joined(value: object, place: str) -> object:
    """The text of a content that is given in parts: [{"type": "text", "text": ...}, ...]."""
    if not isinstance(value, list):
        return value
    parts = [part.get("text") if isinstance(part, dict) else part for part in value]
    if not all(isinstance(part, str) for part in parts):
        raise Unusable(place, "holds a part that is not text; pictures and tool calls cannot be trained")
    return "".join(map(str, parts))


def _maybe(record: Record, heading: str) -> str:
    """An optional field's text; empty where it is not there."""
    value = record.fields.get(heading)
    return "" if blank(value) else _said(value, record.at(heading), heading)


def _text(record: Record, heading: str, what: str) -> str:
    if heading not in record.fields:
        keys = ", ".join(record.fields)
        raise Unusable(record.place, f"the key {heading!r} is missing, there are {keys}; write it or delete the row")
    return _said(record.fields[heading], record.at(heading), what)


def _said(value: object, place: str, what: str) -> str:
    """The value if it is a text that can be trained on."""
    if isinstance(value, Spoiled):
        raise Unusable(place, value.reason)
    if blank(value):
        raise Unusable(place, f"the {what} is empty; write one or delete the row")
    if not isinstance(value, str):
        raise Unusable(place, f"the {what} is {_kind(value)}, not a text; write it as one, between double quotes")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Unusable(
            place, f"the {what} holds half a character (\\u{ord(value[error.start]):x}); write it whole"
        ) from error
    return value


def _kind(value: object) -> str:
    return KINDS.get(type(value), "nothing" if value is None else "a text")


def _key(item: Mapping[str, object], words: Sequence[str]) -> str | None:
    """The item's key that is one of these words."""
    folded = set(map(fold, words))
    return next((key for key in item if fold(key) in folded), None)
