"""Rows from data sets of the hub, or from folders that the `datasets` library wrote; both by that library, an extra."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from patina.errors import PatinaError
from patina.text.records import Findings, Group, Known, Record

NAME = re.compile(r"(?P<set>[\w.-]+/[\w.-]+)(/(?P<config>[\w.-]+))?(:(?P<split>[\w.\[\]%:-]+))?")
"""`owner/name`, or `owner/name/config:split`."""
SPLIT = "train"
"""What is read where no split is named."""
SAVED = ("dataset_dict.json", "state.json")
"""One of these is in a folder that `save_to_disk` wrote."""
REFUSALS = (OSError, ValueError, ImportError)
"""What the library raises for a name, split or connection that is not there."""


class Wanted(NamedTuple):
    """A data set of the hub."""

    name: str
    config: str | None
    split: str


def is_set(path: Path) -> bool:
    """Whether this is a folder that `save_to_disk` wrote, or no path that is here, but a name as the hub has them."""
    if path.is_dir():
        return any((path / name).is_file() for name in SAVED)
    return not path.exists() and not path.is_absolute() and wanted(path) is not None


def wanted(path: Path) -> Wanted | None:
    """The data set that a path would name."""
    found = NAME.fullmatch(path.as_posix())
    return Wanted(found["set"], found["config"], found["split"] or SPLIT) if found else None


def read_set(path: Path, known: Known, findings: Findings) -> list[Group]:
    """The rows of a data set. Raises PatinaError where it cannot be had; no program that comes with one is run."""
    if find_spec("datasets") is None:
        raise PatinaError(
            f"{path}: there is no such file here, and for data sets of the hub the datasets library is missing; "
            "install it (pip install 'patina[datasets]'), or give a file"
        )
    place, rows = _saved(path) if path.is_dir() else _fetched(path)
    findings.note(f"{place}: {len(rows):,} rows")
    records = [Record(row, f"{place}[{number}]") for number, row in enumerate(_named(rows))]
    return [Group(place, records)]


def _fetched(path: Path) -> tuple[str, Any]:
    from datasets import load_dataset  # deferred: an extra, and slow to import

    found = wanted(path)
    assert found is not None, "is_set has said so"
    try:
        rows = load_dataset(found.name, found.config, split=found.split)
    except REFUSALS as error:
        reason = " ".join(str(error).split())[:300]
        raise PatinaError(
            f"{path}: there is no such file here, and the hub's data set {found.name} (split {found.split}) cannot be "
            f"had ({reason}); write owner/name, owner/name:split or owner/name/config:split, or the path of a file"
        ) from error
    return f"{found.name}:{found.split}", rows


def _saved(path: Path) -> tuple[str, Any]:
    from datasets import DatasetDict, load_from_disk

    try:
        found = load_from_disk(str(path))
    except REFUSALS as error:
        reason = " ".join(str(error).split())[:300]
        raise PatinaError(f"{path}: cannot be read as a folder of the datasets library ({reason})") from error
    if not isinstance(found, DatasetDict):
        return path.name, found
    if SPLIT not in found and len(found) > 1:
        raise PatinaError(
            f"{path}: has the splits {', '.join(map(str, found))} and no {SPLIT}; give the folder of one of them"
        )
    split = SPLIT if SPLIT in found else next(iter(found))
    return f"{path.name}:{split}", found[split]


def _named(rows: Any) -> Iterator[Mapping[str, object]]:
    """The rows as dictionaries, labels that are kept as numbers by their names."""
    from datasets import ClassLabel

    kinds = {key: kind for key, kind in rows.features.items() if isinstance(kind, ClassLabel)}
    for row in rows:
        yield {
            key: kinds[key].int2str(value) if key in kinds and value is not None else value
            for key, value in row.items()
        }
