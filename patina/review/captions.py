"""The captions that are proof-read: the rows of a table as the page sees them, and saving what was edited."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from patina.caption.polish import LIMIT
from patina.caption.store import HF_HEADER, TableStore
from patina.data.captions import HEADER, edit_table, one_line, parse_table
from patina.data.images import find_images
from patina.data.tables import Read, read_bytes
from patina.errors import PatinaError
from patina.files import replacing
from patina.tokenizer import count_tokens

ABSENT = "absent"
"""The version of a table that is not there yet."""


@dataclass(frozen=True)
class Proofs:
    """A folder's pictures, known to the page by their place in the list, and the table of their captions."""

    folder: Path
    table: Path
    images: tuple[Path, ...]
    left_out: tuple[str, ...]
    """Names of links that lead out of the folder: they are not shown."""
    trigger: str
    hf: bool
    saving: Lock = field(default_factory=Lock)
    """Held while the table is compared and written: one save at a time."""

    @property
    def names(self) -> list[str]:
        """The pictures as the table calls them: paths below the folder, with forward slashes."""
        return [image.relative_to(self.folder).as_posix() for image in self.images]


@dataclass(frozen=True)
class Stale:
    """A save that was refused, because the table is no longer the one that was edited."""


def open_proofs(folder: Path, table: Path, *, recursive: bool = False, trigger: str = "", hf: bool = False) -> Proofs:
    """Find the pictures of a folder. Raises PatinaError where there are none or the table cannot be edited."""
    found = find_images(folder, recursive, below="add --recursive")
    root = folder.resolve()
    inside = {image: image.resolve().is_relative_to(root) for image in found}
    outside = tuple(image.relative_to(folder).as_posix() for image in found if not inside[image])
    if len(outside) == len(found):
        raise PatinaError(f"{folder}: all pictures are links that lead out of it; put the pictures themselves there")
    proofs = Proofs(folder, table, tuple(image for image in found if inside[image]), outside, trigger, hf)
    _refuse_unfinished(proofs)
    snapshot(proofs)
    return proofs


def snapshot(proofs: Proofs) -> dict[str, object]:
    """What the page shows: captions and their tokens in the order of the pictures, and the version of the table."""
    version, there = _read(proofs.table)
    rows = _rows(proofs.table, there.text)
    captions = [one_line(rows.get(name, "")) for name in proofs.names]
    return {"version": version, "captions": captions, "tokens": count(captions)}


def about(proofs: Proofs) -> dict[str, object]:
    """What stays the same while the page is open."""
    return {
        "table": str(proofs.table),
        "names": [writable(name) for name in proofs.names],
        "trigger": proofs.trigger,
        "limit": LIMIT,
    }


def writable(text: str) -> str:
    """The text with question marks for what is no character: bytes of a file name that were not UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


def count(captions: Sequence[str]) -> list[int]:
    """Tokens of each caption, as CLIP reads it."""
    return count_tokens([writable(caption) for caption in captions])


def save(proofs: Proofs, version: str, edits: Mapping[int, str]) -> dict[str, object] | Stale:
    """Write edited captions, by the place of their picture, to the table of `version`; Stale if it is another by now.

    Returns the new version and the captions as they were written. Rows that were not edited stay as they are, to the
    byte. Raises PatinaError where the table cannot be written.
    """
    with proofs.saving:
        now, there = _read(proofs.table)
        if now != version:
            return Stale()
        _refuse_unfinished(proofs)
        names = proofs.names
        changes = {names[place]: one_line(caption).strip() for place, caption in edits.items()}
        rows = _rows(proofs.table, there.text)
        if changed := {name: caption for name, caption in changes.items() if caption != one_line(rows.get(name, ""))}:
            now = _write(proofs, _edited(proofs, there, rows, changed))
        return {"version": now, "captions": {str(place): changes[names[place]] for place in edits}}


def _edited(proofs: Proofs, there: Read, rows: Mapping[str, str], changed: Mapping[str, str]) -> bytes:
    """The new table, which is read back before it replaces the old one."""
    begin = there.text if there.text.strip() else ",".join(HF_HEADER if proofs.hf else HEADER) + "\n"
    new = edit_table(proofs.table, begin, changed)
    wanted = {**rows, **{name: caption for name, caption in changed.items() if caption or name in rows}}
    if parse_table(proofs.table, new) != wanted:
        raise PatinaError(
            f"{proofs.table}: among {', '.join(map(writable, changed))} is a file name that a table cannot hold; "
            "rename the pictures whose names begin or end with a space or hold a backslash"
        )
    try:
        return new.encode(there.encoding)
    except UnicodeEncodeError as error:
        raise PatinaError(
            f"{proofs.table}: {error.object[error.start : error.end]!r} is no character that a file can hold; "
            "take it out of the caption or the picture's name"
        ) from error


def _write(proofs: Proofs, data: bytes) -> str:
    TableStore(proofs.table).keep_aside(())
    with replacing(proofs.table) as part:
        part.write_bytes(data)
    return _version(data)


def _read(table: Path) -> tuple[str, Read]:
    """The table's version, and its text."""
    try:
        data = table.read_bytes()
    except FileNotFoundError:
        return ABSENT, Read("", "utf-8")
    except IsADirectoryError as error:
        raise PatinaError(f"{table} is a folder; give the path of a table with --output") from error
    return _version(data), read_bytes(table, data)


def _version(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _rows(table: Path, text: str) -> dict[str, str]:
    return parse_table(table, text) if text.strip() else {}


def _refuse_unfinished(proofs: Proofs) -> None:
    journal = TableStore(proofs.table).journal
    if journal.exists():
        raise PatinaError(
            f"{proofs.table}: the labelling of these pictures is not finished ({journal.name} is beside the table) and "
            "would write over what is edited; run the labelling command to its end, then save"
        )
