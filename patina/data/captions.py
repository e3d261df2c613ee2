"""Captions of training pictures: the metadata table, read and written, and the texts beside the pictures."""

import csv
import io
import re
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from patina.data.images import natural_key
from patina.data.records import Record, records, split_lines
from patina.data.tables import (
    NAME_COLUMNS,
    PROMPT_COLUMNS,
    UTF8,
    WEIGHT_COLUMN,
    Row,
    inside,
    json_rows,
    read_text,
    weight_of,
)
from patina.data.variants import ALIKE, Variety
from patina.data.wording import AS_WRITTEN, Wording
from patina.errors import PatinaError
from patina.files import replacing, there

HEADER = ("filename", "prompt")
FOUND = ("metadata.csv", "metadata.jsonl")
"""Tables that are read where they lie among the pictures; Hugging Face calls them so too."""
JSON = (".jsonl", ".json")
SIDECARS = (".txt", ".caption")


@dataclass(frozen=True)
class Captioned:
    """A picture and what it shows."""

    path: Path
    caption: str
    """As written; where a picture has several captions, one a line."""
    folder: Path | None = None
    """The folder of pictures that it is of; None: the one that it lies in."""
    repeats: int = 1
    """How many times an epoch shows it."""
    weight: float = 1.0
    """What its error is multiplied by."""
    prior: bool = False
    """Whether it keeps what the base draws; see `patina.data.prior`."""
    wording: Wording = AS_WRITTEN
    """How its caption changes from one showing to the next."""
    variety: Variety = ALIKE
    """Which variants of it are shown."""


@dataclass(frozen=True)
class _Row:
    record: Record
    name: str
    prompt: str

    @property
    def line(self) -> int:
        return self.record.line


def find_captions(
    images: Sequence[Path],
    folder: Path,
    metadata_path: Path | None,
    tell: Callable[[str], object] = str,
    names: Mapping[Path, str] = MappingProxyType({}),
) -> tuple[list[Captioned], list[Path]]:
    """Pair pictures with captions: from the table, given or found in the folder, else from the text beside each.

    `images` lie under `folder`, to which the table's names are relative; every row counts, in `images` or not. Returns
    the pairs in natural order, and those of `images` that have no caption or an empty one; `tell` is told how many
    came from where. `names`: what pictures are called that have no caption. Raises PatinaError where a row's file is
    missing, or where no picture has a caption at all.
    """
    table = metadata_path or table_in(folder)
    rows = _rows_of_files(table, folder, tell) if table else {}
    captions = {path: row.prompt for path, row in rows.items() if row.prompt}
    sources = Counter({table.name: len(captions)} if table else {})
    for image in images:
        if image not in captions and (found := _beside(image)) is not None:
            text, captions[image] = found
            sources[f"{text.suffix} files"] += bool(captions[image])
        if not captions.get(image) and image in names:
            captions[image] = names[image]
            sources["names of folders"] += 1
    weights = {path: row.weight for path, row in rows.items()}
    pairs = [Captioned(path, said, weight=weights.get(path, 1.0)) for path, said in captions.items() if said]
    if not pairs:
        raise PatinaError(_no_captions(folder, table))
    tell("captions: " + ", ".join(f"{number} from {source}" for source, number in sources.items() if number))
    pairs.sort(key=lambda pair: natural_key(pair.path.relative_to(folder).as_posix()))
    return pairs, [image for image in images if not captions.get(image)]


def table_in(folder: Path) -> Path | None:
    """The table that lies among the pictures. Raises PatinaError where there are two."""
    tables = [folder / name for name in FOUND if (folder / name).is_file()]
    if len(tables) > 1:
        raise PatinaError(
            f"{folder}: holds both {' and '.join(FOUND)}; say which one counts: metadata_path: {tables[0]}"
        )
    return tables[0] if tables else None


def _rows_of_files(table: Path, folder: Path, tell: Callable[[str], object]) -> dict[Path, Row]:
    rows = table_rows(table, folder, tell)
    missing = [row for row in rows if not there(folder / row.name)]
    if missing:
        more = f" (and {len(missing) - 1} more rows like it)" if len(missing) > 1 else ""
        raise PatinaError(
            f"{table}, {missing[0].where}: there is no file {missing[0].name!r} in {folder}{more}; "
            "names are relative to that folder: correct the name or delete the row"
        )
    return {folder / row.name: row for row in rows}


def table_rows(table: Path, folder: Path, tell: Callable[[str], object] = str) -> list[Row]:
    """The rows of a CSV, of a `.jsonl`, or of kohya's `.json`, in UTF-8 or, which `tell` is told, UTF-16 or GB18030.

    Raises PatinaError naming the line or key that cannot be used.
    """
    text, encoding = read_text(table)
    if encoding not in UTF8:
        tell(f"{table}: is not UTF-8 and is read as {encoding.upper()}; if its captions look wrong, save it as UTF-8")
    if table.suffix.lower() in JSON:
        return json_rows(table, text, folder)
    columns = read_header(table, text)
    weight_at = columns.index(WEIGHT_COLUMN) if WEIGHT_COLUMN in columns else None
    return [_weighed(table, row, weight_at) for row in _rows(table, text)]


def _weighed(table: Path, row: _Row, weight_at: int | None) -> Row:
    where = f"line {row.line}"
    written = None if weight_at is None else row.record.fields[weight_at].strip()
    return Row(where, row.name, row.prompt, weight_of(table, where, written))


def sidecar(image: Path) -> str | None:
    """What the `.txt` or `.caption` beside a picture says; None where there is none. Raises PatinaError."""
    found = _beside(image)
    return None if found is None else found[1]


def _beside(image: Path) -> tuple[Path, str] | None:
    """The text beside a picture, and what it says: of two the first, unless nothing is in it."""
    beside = (text for suffix in SIDECARS if there(text := image.with_suffix(suffix)))
    read = ((text, read_text(text).text.strip()) for text in beside)
    first = next(read, None)
    return first if first is None or first[1] else next((other for other in read if other[1]), first)


def _no_captions(folder: Path, table: Path | None) -> str:
    where = f"{table}: no picture of {folder} has a caption in it" if table else f"{folder}: no picture has a caption"
    output = table if table and table.suffix.lower() not in JSON else folder / FOUND[0]
    command = f"python tools/auto_label.py --input {shlex.quote(str(folder))} --output {shlex.quote(str(output))}"
    if table is None:
        return f"{where}; write them with: {command}, or name its folder as 1_NAME, and NAME is the caption of each"
    return f"{where}; write them with: {command}" + (f", then set metadata_path: {output}" if output != table else "")


def read_table(path: Path) -> dict[str, str]:
    """Read a CSV of captions: file name as written (with forward slashes) -> prompt, in the file's order.

    The columns may have any of the usual names. With two columns a comma that nobody quoted belongs to the prompt.
    Raises PatinaError naming the line that cannot be used.
    """
    return parse_table(path, read_text(path).text)


def parse_table(path: Path, text: str) -> dict[str, str]:
    """As `read_table`, of a text that was read from `path` already."""
    return {row.name: row.prompt for row in _rows(path, text)}


def edit_table(path: Path, text: str, changes: Mapping[str, str]) -> str:
    """The text of a table with other prompts for some names: all that did not change stands as it did, to the byte.

    A name that has no row gets one at the end, unless its prompt is empty. Raises PatinaError as `read_table` does.
    """
    columns = read_header(path, text)
    name_at, prompt_at = _columns(path, columns)
    lines = split_lines(text)
    rows = _rows(path, text)
    known = {row.name for row in rows}
    for row in rows:
        if changes.get(row.name, row.prompt) != row.prompt:
            fields = list(row.record.fields)
            fields[prompt_at] = changes[row.name]
            end = _line_end(lines[row.record.stop - 1])
            blanks = [""] * (row.record.stop - row.record.first - 1)  # the records after it keep their places
            lines[row.record.first : row.record.stop] = [_written(fields, end), *blanks]
    return _with_rows(
        "".join(lines),
        [
            [{name_at: name, prompt_at: prompt}.get(at, "") for at in range(len(columns))]
            for name, prompt in changes.items()
            if prompt and name not in known
        ],
    )


def _with_rows(text: str, rows: list[list[str]]) -> str:
    if not rows:
        return text
    end = _line_end(split_lines(text)[0]) or "\n"
    begun = "" if _line_end(text) else end
    return text + begun + "".join(_written(fields, end) for fields in rows)


def _written(fields: Sequence[str], end: str) -> str:
    stream = io.StringIO(newline="")
    # Python quotes a field for the characters of the line's end in it, and a name may hold either of these.
    csv.writer(stream, lineterminator="\r\n").writerow(fields)
    return stream.getvalue().removesuffix("\r\n") + end


def _line_end(line: str) -> str:
    return line[len(line.rstrip("\r\n")) :][-2:]


def one_line(prompt: str) -> str:
    """The prompt as a table keeps it: line breaks become spaces."""
    return re.sub(r"\s*[\r\n]+\s*", " ", prompt)


def read_header(path: Path, text: str | None = None) -> list[str]:
    """The column names of a CSV, in lower case; of `text` where it was read already.

    Raises PatinaError where the file has no first line.
    """
    for record in records(path, read_text(path).text if text is None else text):
        return [field.strip().lower() for field in record.fields]
    raise PatinaError(f"{path}, line 1: the file is empty; write {','.join(HEADER)} there")


def write_table(path: Path, rows: Mapping[str, str], header: Sequence[str] = HEADER, encoding: str = "utf-8") -> None:
    """Write rows of a name and a prompt, complete or not at all; line breaks within a prompt become spaces."""
    with replacing(path) as part, part.open("w", encoding=encoding, newline="") as stream:
        stream.write(_written(header, "\n"))
        stream.writelines(_written((name, one_line(prompt)), "\n") for name, prompt in rows.items())


def _rows(path: Path, text: str) -> list[_Row]:
    columns = read_header(path, text)
    name_at, prompt_at = _columns(path, columns)
    rows: dict[str, _Row] = {}
    for record in list(records(path, text))[1:]:
        line, fields = record.line, _fit(path, record.line, record.fields, columns, name_at)
        name = inside(path, f"line {line}", fields[name_at].strip())
        if name in rows:
            earlier = rows[name].line
            raise PatinaError(f"{path}, line {line}: {name!r} was captioned in line {earlier}; delete one of them")
        rows[name] = _Row(replace(record, fields=fields), name, fields[prompt_at].strip())
    return list(rows.values())


def _columns(path: Path, columns: list[str]) -> tuple[int, int]:
    """Where the names stand, and the prompts."""
    return _column(path, columns, NAME_COLUMNS), _column(path, columns, PROMPT_COLUMNS)


def _column(path: Path, columns: list[str], names: tuple[str, ...]) -> int:
    found = next((name for name in names if name in columns), None)
    if found is None:
        raise PatinaError(
            f"{path}, line 1: no column is called {names[0]!r}, only {columns}; "
            f"the first line must name the columns: write {','.join(HEADER)} there, separated by a comma"
        )
    return columns.index(found)


def _fit(path: Path, line: int, fields: list[str], columns: list[str], name_at: int) -> list[str]:
    if len(fields) == len(columns):
        return fields
    if len(columns) == 2 and len(fields) > 2:
        first, last = ([fields[0]], fields[1:]) if name_at == 0 else (fields[:-1], [fields[-1]])
        return [",".join(first), ",".join(last)]
    raise PatinaError(
        f"{path}, line {line}: {len(fields)} fields where line 1 names {len(columns)} columns ({','.join(columns)}); "
        "put a prompt that holds a comma between double quotes"
    )
