"""Rules about captions: where they are, whether they fit, and what they should not say."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from patina.caption.style import prune, set_style
from patina.check.findings import ERROR, WARNING, Finding
from patina.data.captions import sidecar, table_in, table_rows
from patina.data.wording import has_trigger, told, with_trigger
from patina.errors import PatinaError
from patina.files import there
from patina.tokenizer import CONTEXT, count_tokens

ROOM = CONTEXT - 2
"""Tokens of text that CLIP reads at once."""
BLOCK = 1_000
"""Captions that are tokenised at a time: what the tokenizer makes of 100,000 at once takes 300 MB."""

Captions = Mapping[str, str]
"""File name within the folder -> caption, which may be empty."""


def read_captions(
    images: Sequence[Path], folder: Path, table: Path | None, left_out: Sequence[str] = (), named: bool = False
) -> tuple[Captions, list[Finding]]:
    """The captions of pictures that are there, from the table or beside the pictures, and what is wrong with either.

    A table in the folder is not looked for where it is among the names `left_out`. `named`: pictures without a caption
    take their folder's name, as in kohya's.
    """
    captions, found = _beside(images, folder)
    try:
        table = table or table_in(folder)
        if table and table.parent == folder and table.name in left_out:
            table = None
        if table:
            rows, wrong = _from_table(folder, table)
            captions, found = captions | {name: said for name, said in rows.items() if said}, found + wrong
    except PatinaError as error:
        found.append(Finding("table", ERROR, str(table or folder), str(error)))
    if not any(captions.values()) and not named:
        said = f"no picture has a caption in {table}" if table else "no picture has a text with a caption beside it"
        found.append(Finding("uncaptioned set", ERROR, str(folder), f"{said}; write them with tools/auto_label.py"))
    return captions, found


def _from_table(folder: Path, table: Path) -> tuple[dict[str, str], list[Finding]]:
    rows = {row.name: told(row.prompt, "first", None) for row in table_rows(table, folder)}
    found = {name: caption for name, caption in rows.items() if there(folder / name)}
    said = f"is named in {table.name} and not there; correct the name or delete the row"
    return found, [Finding("row without file", ERROR, name, said) for name in rows if name not in found]


def _beside(images: Sequence[Path], folder: Path) -> tuple[dict[str, str], list[Finding]]:
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
            captions[name] = caption
    pictures = {image.with_suffix(".txt") for image in images}
    alone = sorted(path.name for path in folder.glob("*.txt") if path not in pictures and not path.name.startswith("."))
    said = "has no picture beside it; see whether one is missing"
    return captions, [*found, *(Finding("row without file", WARNING, name, said) for name in alone)]


def caption_findings(names: Sequence[str], captions: Captions, trigger: str | None) -> list[Finding]:
    """What the rules find about the pictures `names`; the trigger word is counted where training puts it in front."""
    written = {name: captions[name] for name in names if captions.get(name)}
    silent = [name for name in names if name not in written]
    said = "has no caption, or an empty one"
    found = [Finding("without caption", WARNING, name, said) for name in silent]
    found += [*repeated(written), *_long(written, trigger), *styled(written, trigger)]
    if trigger is not None:
        found += _without(written, trigger)
    return found


def repeated(captions: Captions) -> Iterable[Finding]:
    """Those that say what an earlier one says."""
    first: dict[str, str] = {}
    for name, caption in captions.items():
        earlier = first.setdefault(" ".join(caption.casefold().split()), name)
        if earlier != name:
            yield Finding("repeated caption", WARNING, name, f"is captioned as {earlier} is; say what tells them apart")


def _long(captions: Captions, trigger: str | None) -> Iterable[Finding]:
    names = list(captions)
    for start in range(0, len(names), BLOCK):
        block = names[start : start + BLOCK]
        read = count_tokens([with_trigger(trigger or "", captions[name]) for name in block])
        for name, tokens in zip(block, read, strict=True):
            if tokens > ROOM:
                yield Finding("long caption", WARNING, name, f"{tokens} tokens, where CLIP reads {ROOM} at once")


def styled(captions: Captions, trigger: str | None) -> Iterable[Finding]:
    """Those that say how a picture is drawn, which the trigger word is to learn."""
    contents = {name: _content(caption, trigger) for name, caption in captions.items()}
    common = set_style(list(contents.values()), [])
    for name, content in contents.items():
        if removed := prune(content, common)[1]:
            words = ", ".join(dict.fromkeys(f'"{phrase}" ({why})' for phrase, why in removed))
            yield Finding("style", WARNING, name, f"says {words}")


def further_on(trigger: str, caption: str) -> bool:
    """Whether the trigger word stands in a caption elsewhere than at its beginning."""
    word = rf"(?<!\w){re.escape(trigger)}(?!\w)"
    return re.search(word, _content(caption, trigger), re.IGNORECASE) is not None


def _content(caption: str, trigger: str | None) -> str:
    return caption[len(trigger) :].lstrip(" ,") if trigger and has_trigger(trigger, caption) else caption


def _without(captions: Captions, trigger: str) -> Iterable[Finding]:
    for name, caption in captions.items():
        if not has_trigger(trigger, caption):
            again = "has it further on, and so has it twice in training"
            again = again if further_on(trigger, caption) else "training puts it in front"
            yield Finding("trigger", WARNING, name, f'does not begin with "{trigger}"; {again}')
