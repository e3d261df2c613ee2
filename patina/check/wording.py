"""Rules about captions: where they are, whether they fit, and what they should not say."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from patina.caption.style import prune, set_style
from patina.check.findings import ERROR, WARNING, Finding
from patina.data.captions import sidecar, table_in, table_rows
from patina.data.wording import MARK, has_trigger, told, with_trigger
from patina.errors import PatinaError
from patina.files import there
from patina.tokenizer import CONTEXT, count_tokens

ROOM = CONTEXT - 2
"""Tokens of text that CLIP reads at once."""
BLOCK = 1_000
"""Captions that are tokenised at a time: what the tokenizer makes of 100,000 at once takes 300 MB."""

Captions = Mapping[str, str]
"""File name within the folder -> caption, which may be empty, or several, one a line."""
Lines = Sequence[tuple[str, str]]
"""File names, each with one caption of its picture, which is not empty."""


def read_captions(
    images: Sequence[Path],
    folder: Path,
    table: Path | None,
    lines: str,
    *,
    left_out: Sequence[str] = (),
    named: bool = False,
) -> tuple[Captions, list[Finding]]:
    """The captions of pictures that are there, from the table or beside the pictures, and what is wrong with either.

    `lines`: which of several are taken, as `dataset.caption_lines` has it. A table in the folder is not looked for
    where it is among the names `left_out`. `named`: pictures without a caption take their folder's name, as in kohya's.
    """
    captions, found = _beside(images, folder, lines)
    try:
        table = table or table_in(folder)
        if table and table.parent == folder and table.name in left_out:
            table = None
        if table:
            rows, wrong = _from_table(folder, table, lines)
            captions, found = captions | {name: said for name, said in rows.items() if said}, found + wrong
    except PatinaError as error:
        found.append(Finding("table", ERROR, str(table or folder), str(error)))
    if not any(captions.values()) and not named:
        said = f"no picture has a caption in {table}" if table else "no picture has a text with a caption beside it"
        found.append(Finding("uncaptioned set", ERROR, str(folder), f"{said}; write them with tools/auto_label.py"))
    return captions, found


def _from_table(folder: Path, table: Path, lines: str) -> tuple[dict[str, str], list[Finding]]:
    rows = {row.name: told(row.prompt, lines, None) for row in table_rows(table, folder)}
    found = {name: caption for name, caption in rows.items() if there(folder / name)}
    said = f"is named in {table.name} and not there; correct the name or delete the row"
    return found, [Finding("row without file", ERROR, name, said) for name in rows if name not in found]


def _beside(images: Sequence[Path], folder: Path, lines: str) -> tuple[dict[str, str], list[Finding]]:
    captions: dict[str, str] = {}
    found: list[Finding] = []
    for image in images:
        name = image.relative_to(folder).as_posix()
        try:
            caption = sidecar(image)
        except PatinaError as error:
            found.append(Finding("table", ERROR, name, str(error)))
            continue
        if caption is not None:
            captions[name] = told(caption, lines, None)
    pictures = {image.with_suffix(".txt") for image in images}
    alone = sorted(path.name for path in folder.glob("*.txt") if path not in pictures and not path.name.startswith("."))
    said = "has no picture beside it; see whether one is missing"
    return captions, [*found, *(Finding("row without file", WARNING, name, said) for name in alone)]


def caption_findings(names: Sequence[str], captions: Captions, trigger: str | None) -> list[Finding]:
    """What the rules find about the pictures `names`; the trigger word is counted where training puts it in front."""
    written = [(name, line) for name in names for line in dict.fromkeys(captions.get(name, "").split("\n")) if line]
    silent = [name for name in names if not captions.get(name)]
    said = "has no caption, or an empty one"
    found = [Finding("without caption", WARNING, name, said) for name in silent]
    found += [*repeated(written), *_long(written, trigger), *styled(written, trigger)]
    if trigger is not None:
        found += _without(written, trigger)
    return list(dict.fromkeys(found))


def repeated(lines: Lines) -> Iterable[Finding]:
    """Those that say what an earlier picture's says."""
    first: dict[str, str] = {}
    for name, caption in lines:
        earlier = first.setdefault(" ".join(caption.casefold().split()), name)
        if earlier != name:
            yield Finding("repeated caption", WARNING, name, f"is captioned as {earlier} is; say what tells them apart")


def _long(lines: Lines, trigger: str | None) -> Iterable[Finding]:
    for start in range(0, len(lines), BLOCK):
        block = lines[start : start + BLOCK]
        read = count_tokens([with_trigger(trigger or "", caption) for _, caption in block])
        for (name, _), tokens in zip(block, read, strict=True):
            if tokens > ROOM:
                yield Finding("long caption", WARNING, name, f"{tokens} tokens, where CLIP reads {ROOM} at once")


def styled(lines: Lines, trigger: str | None) -> Iterable[Finding]:
    """Those that say how a picture is drawn, which the trigger word is to learn."""
    contents = [(name, _content(caption, trigger)) for name, caption in lines]
    common = set_style([content for _, content in contents], [])
    for name, content in contents:
        if removed := prune(content, common)[1]:
            words = ", ".join(dict.fromkeys(f'"{phrase}" ({why})' for phrase, why in removed))
            yield Finding("style", WARNING, name, f"says {words}")


def further_on(trigger: str, caption: str) -> bool:
    """Whether the trigger word stands in a caption elsewhere than at its beginning."""
    word = rf"(?<!\w){re.escape(trigger)}(?!\w)"
    return re.search(word, _content(caption, trigger), re.IGNORECASE) is not None


def _content(caption: str, trigger: str | None) -> str:
    return caption[len(trigger) :].lstrip(" ,") if trigger and has_trigger(trigger, caption) else caption


def _without(lines: Lines, trigger: str) -> Iterable[Finding]:
    for name, caption in lines:
        if not has_trigger(trigger, caption) and MARK not in caption:
            again = "has it further on, and so has it twice in training"
            again = again if further_on(trigger, caption) else "training puts it in front"
            yield Finding("trigger", WARNING, name, f'does not begin with "{trigger}"; {again}')
