"""Records in plain text: blocks of "问：" and "答：", or one question and answer a line; Markdown is raw text."""

import re
from pathlib import Path

from patina.errors import PatinaError
from patina.text.decode import read_text
from patina.text.records import Findings, Group, Known, Record
from patina.text.rows import Role, Turn

MARKERS: tuple[tuple[Role, str], ...] = (
    ("system", "系统|system"),
    ("user", r"问题|提问|问|用户|客户|Q|question|user|human"),
    ("assistant", r"答案|回答|答复|答|助手|客服|A|answer|assistant|bot|gpt"),
)
"""How a line begins that says who speaks, before a colon; a number may follow the word: "Q1:", "问题 2："."""
MARKER = re.compile(
    "|".join(rf"(?P<{role}>^[\[【]?(?:{words})\s*\d*[\]】]?\s*[:：])" for role, words in MARKERS), re.IGNORECASE
)
SEPARATORS = ("\t", "|||", "||", "=>", "->", "→", "\uff5c", "|")
"""What may stand between question and answer: the first that every line has exactly once."""
MANNERS = "write one question and answer a line with a tab between them, or blocks of 问：... and 答：... (Q: and A:)"


def read_plain(path: Path, known: Known, findings: Findings) -> list[Group]:
    """The conversations of a txt file. Raises PatinaError where nothing tells questions from answers."""
    text, encoding = read_text(path)
    findings.note(f"{path.name}: {encoding}")
    lines = text.split("\n")
    said = {match.lastgroup for line in lines if (match := MARKER.match(line.strip()))}
    if {"user", "assistant"} <= said:
        return [Group(path.name, _blocks(path.name, lines, findings))]
    full = [line for line in lines if line.strip()]
    if full and full[0].lstrip()[0] in "[{" and full[-1].rstrip()[-1] in "]}":
        raise PatinaError(f"{path.name}: holds JSON; rename it to {path.stem}.json, or .jsonl with one object a line")
    if not full:
        return [Group(path.name, [])]
    separator = next((sign for sign in SEPARATORS if all(line.strip().count(sign) == 1 for line in full)), None)
    if separator is None and 2 * sum(line.count("\t") == 1 for line in full) < len(full):
        raise PatinaError(f"{path.name}: nothing tells questions from answers; {MANNERS}; name raw text .md")
    findings.note(f"{path.name}: one question and answer a line, separated by {_called(separator or SEPARATORS[0])}")
    return [Group(path.name, _pairs(path.name, lines, separator or SEPARATORS[0], findings))]


def read_raw(path: Path, known: Known, findings: Findings) -> list[Group]:
    """The whole text of a Markdown file, to be continued as it is."""
    text, encoding = read_text(path)
    findings.note(f"{path.name}: {encoding}, raw text")
    return [Group(path.name, [Record({"text": text.strip("\n")}, path.name)] if text.strip() else [])]


def _called(separator: str) -> str:
    return "a tab" if separator == "\t" else separator


def _pairs(name: str, lines: list[str], separator: str, findings: Findings) -> list[Record]:
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        parts = [part.strip() for part in line.split(separator)]
        if len(parts) != 2:
            found = "no" if len(parts) == 1 else f"{len(parts) - 1}"
            findings.fault(f"{name}:{number}", f"has {found} separators ({_called(separator)}); write exactly one")
        elif any(parts):
            records.append(Record({"question": parts[0], "answer": parts[1]}, f"{name}:{number}"))
    return records[1:] if records and _is_heading(records[0]) else records


def _is_heading(record: Record) -> bool:
    """Whether the first line only names the columns, as text saved from a spreadsheet does."""
    words = {str(value).casefold() for value in record.fields.values()}
    return words in ({"question", "answer"}, {"问题", "答案"}, {"问", "答"}, {"instruction", "output"})


def _blocks(name: str, lines: list[str], findings: Findings) -> list[Record]:
    """Conversations: a blank line ends one where a question follows; without any blank line each pair is one."""
    talks: list[tuple[int, list[Turn]]] = []
    apart = any(not line.strip() for line in "\n".join(lines).strip().split("\n"))
    fresh = True
    for number, line in enumerate(lines, 1):
        match = MARKER.match(line.strip())
        if match is None:
            fresh = fresh or not line.strip()
            _continue(talks, line, f"{name}:{number}", findings)
            continue
        role, text = _role(match), line.strip()[match.end() :].strip()
        last = talks[-1][1][-1].role if talks else ""
        begins = fresh and last != "system" if apart else last == "assistant"
        if not talks or (role != "assistant" and begins):
            talks.append((number, []))
        talks[-1][1].append(Turn(role, text))
        fresh = False
    if not apart and len(talks) > 1:
        findings.note(f"{name}: no blank lines, so each question with its answer is an example of its own")
    return [_record(turns, f"{name}:{number}") for number, turns in talks]


def _role(match: re.Match[str]) -> Role:
    return next(role for role, _ in MARKERS if role == match.lastgroup)


def _continue(talks: list[tuple[int, list[Turn]]], line: str, place: str, findings: Findings) -> None:
    """A line without a marker goes on with what was said before, blank lines as paragraphs."""
    if talks:
        turns = talks[-1][1]
        turns[-1] = Turn(turns[-1].role, f"{turns[-1].text}\n{line.rstrip()}")
    elif line.strip():
        findings.fault(place, "stands before the first question; begin it with 问： or Q:")


def _record(turns: list[Turn], place: str) -> Record:
    return Record({"messages": [{"role": turn.role, "content": turn.text.strip()} for turn in turns]}, place)
