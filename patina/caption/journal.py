"""What an unfinished run has captioned so far, a line a picture: a run that was killed goes on where it was."""

import glob
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from patina.files import write_text


@dataclass(frozen=True)
class Entry:
    """One picture that a model has captioned."""

    name: str
    text: str
    """As the model wrote it."""
    before: str
    """The prompt that was there before the run."""
    prompt: str
    """The prompt as it was finished at the time."""
    truncated: bool = False
    source: str = ""
    styles: tuple[str, ...] = ()

    def is_ours(self, prompt: str) -> bool:
        """Whether the prompt that is there now is the run's own doing, and no edit of the user's since."""
        return prompt in (self.before, self.prompt)


def journal_of(path: Path, rank: int) -> Path:
    """The journal of one process of several; the first has `path` itself."""
    return path.with_name(f"{path.name}.{rank}") if rank else path


def journals(path: Path) -> list[Path]:
    """Those that are there: of this run's processes and of an earlier one's, which may have had more."""
    others = sorted(path.parent.glob(f"{glob.escape(path.name)}.[0-9]*"))
    return [one for one in (path, *others) if one.exists()]


def read_journal(path: Path, key: str) -> dict[str, Entry]:
    """The entries of a run of the same key (model, settings, mode); a last line cut short is as if not written."""
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    if lines[0] != key:
        return {}
    entries = [_entry(line) for line in lines[1:-1]]
    return {entry.name: entry for entry in entries if entry is not None}


def open_journal(path: Path, key: str, entries: Iterable[Entry]) -> TextIO:
    """Begin the journal anew with what is to be kept of an earlier one; the rest is appended with `add`."""
    write_text(path, "".join(f"{line}\n" for line in (key, *map(_line, entries))))
    return path.open("a", encoding="utf-8", newline="\n")


def add(journal: TextIO, entries: Iterable[Entry]) -> None:
    """Append, so that a process that dies has lost nothing that was added."""
    journal.write("".join(f"{_line(entry)}\n" for entry in entries))
    journal.flush()


def _line(entry: Entry) -> str:
    return json.dumps(asdict(entry), ensure_ascii=False)


def _entry(line: str) -> Entry | None:
    try:
        found = json.loads(line)
        return Entry(**found | {"styles": tuple(found["styles"])})
    except (ValueError, TypeError, KeyError):
        return None
