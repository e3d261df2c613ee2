"""Captioning a folder into a table: what is left to do, pictures read ahead of the model, rows saved as they come."""

import re
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from patina.caption.captioner import Captioner
from patina.data.ahead import ahead
from patina.data.captions import HEADER, read_header, read_table, write_table
from patina.data.images import ImageError, find_images, natural_key, open_image
from patina.errors import PatinaError

SAVE_EVERY = 16
"""Batches between two saves: what a power cut can cost."""


@dataclass(frozen=True)
class Plan:
    """What a run will do: the pictures found, those left to caption, and the rows that the table has already."""

    folder: Path
    table: Path
    images: tuple[Path, ...]
    todo: tuple[Path, ...]
    rows: dict[str, str]

    def gone(self) -> list[str]:
        """Rows whose picture is no longer there. They stay in the table: a user may have put the file aside."""
        return [name for name in self.rows if not (self.folder / name).is_file()]

    def rows_without(self, trigger: str) -> list[str]:
        """Rows that are kept although they do not begin with the trigger."""
        return [name for name, prompt in self.rows.items() if prompt and not has_trigger(trigger, prompt)]


@dataclass
class Outcome:
    """What a run did: how many pictures it captioned, which captions were cut, and the pictures it could not read."""

    done: int = 0
    cut: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    """File name -> the sentence that says why."""


def plan_labels(folder: Path, table: Path, recursive: bool = False) -> Plan:
    """Compare a folder with its table, if there is one: a row that holds a prompt is kept as it is.

    Names in the table are relative to `folder`. Raises PatinaError for a folder without pictures or a table that
    cannot be continued.
    """
    images = find_images(folder, recursive)
    rows = _existing(table)
    todo = tuple(image for image in images if not rows.get(_name(image, folder)))
    return Plan(folder, table, tuple(images), todo, rows)


def _existing(table: Path) -> dict[str, str]:
    if not table.exists():
        return {}
    rows = read_table(table)
    header = read_header(table)
    if header != list(HEADER):
        raise PatinaError(
            f"{table}, line 1: the table has the columns {','.join(header)}, and only {','.join(HEADER)} can be "
            "continued without losing something; give another --output"
        )
    return rows


def _name(image: Path, folder: Path) -> str:
    return image.relative_to(folder).as_posix()


def label_folder(
    plan: Plan,
    captioner: Captioner,
    *,
    trigger: str = "",
    batch_size: int = 8,
    workers: int = 2,
    save_every: int = SAVE_EVERY,
) -> Outcome:
    """Caption what the plan has left to do with a loaded captioner, and write the table.

    It is saved after the first batch, after every `save_every` more, and however the run ends, Ctrl-C included.
    Pictures that cannot be read are collected in the outcome; the others are done all the same.
    """
    rows, outcome = dict(plan.rows), Outcome()

    def read(image: Path) -> Any:
        return captioner.prepare(open_image(image))

    try:
        with (
            closing(ahead(read, plan.todo, workers, depth=2 * batch_size + workers)) as stream,
            tqdm(total=len(plan.todo), unit="image", disable=None) as bar,
        ):
            for number, (names, batch) in enumerate(_batches(stream, plan.folder, batch_size, outcome)):
                for name, caption in zip(names, captioner.generate(batch), strict=True):
                    rows[name] = with_trigger(trigger, caption.text)
                    outcome.cut += [name] if caption.truncated else []
                outcome.done += len(names)
                bar.update(outcome.done + len(outcome.unreadable) - bar.n)
                if number % save_every == 0:
                    _save(plan.table, rows)
    finally:
        _save(plan.table, rows)
    return outcome


def _save(table: Path, rows: dict[str, str]) -> None:
    write_table(table, dict(sorted(rows.items(), key=lambda row: natural_key(row[0]))))


def _batches(
    stream: Iterable[tuple[Path, Future[Any]]], folder: Path, size: int, outcome: Outcome
) -> Iterator[tuple[list[str], list[Any]]]:
    """Group what was read; what could not be read goes to the outcome instead."""
    names: list[str] = []
    batch: list[Any] = []
    for path, future in stream:
        try:
            batch.append(future.result())
        except ImageError as error:
            outcome.unreadable[_name(path, folder)] = str(error)
            continue
        names.append(_name(path, folder))
        if len(batch) == size:
            yield names, batch
            names, batch = [], []
    if batch:
        yield names, batch


def with_trigger(trigger: str, caption: str) -> str:
    """The caption with the trigger word in front, once; a caption that begins with it is left alone."""
    if not trigger or has_trigger(trigger, caption):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def has_trigger(trigger: str, caption: str) -> bool:
    """Whether the caption begins with the trigger as a whole word; CLIP reads capitals and small letters alike."""
    return re.match(rf"{re.escape(trigger)}(?!\w)", caption, re.IGNORECASE) is not None
