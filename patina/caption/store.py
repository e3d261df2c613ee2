"""Where prompts are kept: a table, or a text beside each picture; what is replaced is kept aside once."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from patina.data.captions import HEADER, parse_table, read_header, write_table
from patina.data.tables import read_text, sayable
from patina.errors import PatinaError
from patina.files import nameable, part_of, there, write_text

HF_HEADER = ("file_name", "text")
"""The columns that Hugging Face's imagefolder and diffusers' scripts look for."""

UNSAYABLE = (
    "the name begins or ends with a blank, holds a backslash or is not UTF-8, which a table cannot say; rename the "
    "picture, or write texts beside the pictures with --sidecar txt"
)
TOO_LONG = (
    "the name is so long that a text beside it cannot be written, whose name is longer still; shorten it, or write a "
    "table with --output"
)


class Store(Protocol):
    """Prompts by name: the picture's path below its folder, with forward slashes."""

    @property
    def where(self) -> Path:
        """The file or folder that messages name."""
        ...

    @property
    def journal(self) -> Path:
        """A hidden file for what is not finished."""
        ...

    def read(self, names: Iterable[str]) -> dict[str, str]:
        """The prompts that are there. Raises PatinaError where they could not be kept."""
        ...

    def refuses(self, name: str) -> str | None:
        """Why no prompt can be kept under this name and found again, and what to do; None: it can."""
        ...

    def keep_aside(self, names: Iterable[str]) -> None:
        """Copy what holds these prompts to `.bak`, unless there is such a copy already."""
        ...

    def write(self, rows: Mapping[str, str], changed: Iterable[str]) -> None:
        """Save the rows, complete or not at all; only those in `changed` differ from what is there."""
        ...


class TableStore:
    """A CSV of `filename,prompt`, or of `file_name,text`; one that is there keeps its columns and its encoding."""

    def __init__(self, path: Path, hf: bool = False) -> None:
        self.where, self._hf = path, hf
        self.journal = path.with_name(f".{path.name}.journal")
        self._header, self._encoding = HF_HEADER if hf else HEADER, "utf-8"

    def read(self, names: Iterable[str]) -> dict[str, str]:
        """All rows, those of other pictures too."""
        if not self.where.exists():
            return {}
        text, self._encoding = read_text(self.where)
        rows, header = parse_table(self.where, text), tuple(read_header(self.where, text))
        if header not in ((HF_HEADER,) if self._hf else (HEADER, HF_HEADER)):
            wanted = ",".join(HF_HEADER) if self._hf else f"{','.join(HEADER)} or {','.join(HF_HEADER)}"
            raise PatinaError(
                f"{self.where}, line 1: the table has the columns {','.join(header)}, and only {wanted} can be "
                "continued without losing something; give another --output"
            )
        self._header = header
        return rows

    def refuses(self, name: str) -> str | None:
        """Names that the table's readers would take for others cannot be in it."""
        return None if sayable(name) else UNSAYABLE

    def keep_aside(self, names: Iterable[str]) -> None:
        """The whole table to `metadata.csv.bak`."""
        _copy_once(self.where)

    def write(self, rows: Mapping[str, str], changed: Iterable[str]) -> None:
        """The whole table anew."""
        write_table(self.where, rows, self._header, self._encoding)


class SidecarStore:
    """A text file beside each picture, of one line."""

    def __init__(self, folder: Path, suffix: str) -> None:
        self.where, self._suffix = folder, suffix
        self.journal = folder / ".captions.journal"

    def read(self, names: Iterable[str]) -> dict[str, str]:
        """The whole text of each file, lines and all: it stays as it is where it is kept."""
        texts: dict[str, Path] = {}
        owners: dict[Path, str] = {}
        for name in names:
            texts[name] = self._beside(name)
            if owners.setdefault(texts[name], name) != name:
                raise PatinaError(
                    f"{self.where / name}: {owners[texts[name]]} would share {texts[name].name} with it; rename one of "
                    "the two, or write a table with --output"
                )
        return {name: read_text(path).text.strip() for name, path in texts.items() if there(path)}

    def refuses(self, name: str) -> str | None:
        """What is a picture's name can be its text's, but that texts are written under longer names at first."""
        return None if nameable(part_of(self._beside(name))) else TOO_LONG

    def keep_aside(self, names: Iterable[str]) -> None:
        """Each file to `NAME.txt.bak`."""
        for name in names:
            _copy_once(self._beside(name))

    def write(self, rows: Mapping[str, str], changed: Iterable[str]) -> None:
        """The files of those that changed."""
        for name in changed:
            write_text(self._beside(name), f"{' '.join(rows[name].split())}\n")

    def _beside(self, name: str) -> Path:
        return (self.where / name).with_suffix(self._suffix)


def _copy_once(path: Path) -> None:
    copy = path.with_name(f"{path.name}.bak")
    if path.exists() and not copy.exists():
        shutil.copy2(path, copy)
