"""Captions of training pictures: the metadata table, read and written, and `.txt` files beside the pictures."""

import csv
import io
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from patina.data.images import natural_key
from patina.errors import PatinaError
from patina.files import replacing

HEADER = ("filename", "prompt")
NAME_COLUMNS = ("filename", "file_name", "image", "image_path", "path", "image_file")
PROMPT_COLUMNS = ("prompt", "text", "caption", "captions", "tags")


@dataclass(frozen=True)
class Captioned:
    """A picture and what it shows."""

    path: Path
    caption: str


@dataclass(frozen=True)
class _Row:
    line: int
    name: str
    prompt: str


def find_captions(
    images: Sequence[Path], folder: Path, metadata_path: Path | None
) -> tuple[list[Captioned], list[Path]]:
    """Pair pictures with captions: from the table where one is given, else from the `.txt` beside each picture.

    `images` lie under `folder`, to which the table's names are relative; every row counts, in `images` or not. Returns
    the pairs in natural order, and those of `images` that have no caption or an empty one. Raises PatinaError where
    a row's file is missing, or where no picture has a caption at all.
    """
    captions = _sidecars(images) if metadata_path is None else _table_captions(folder, metadata_path)
    pairs = [Captioned(path, caption) for path, caption in captions.items() if caption]
    if not pairs:
        raise PatinaError(_no_captions(folder, metadata_path))
    pairs.sort(key=lambda pair: natural_key(pair.path.relative_to(folder).as_posix()))
    return pairs, [image for image in images if not captions.get(image)]


def _table_captions(folder: Path, table: Path) -> dict[Path, str]:
    rows = _rows(table)
    missing = [row for row in rows if not (folder / row.name).is_file()]
    if missing:
        more = f" (and {len(missing) - 1} more rows like it)" if len(missing) > 1 else ""
        raise PatinaError(
            f"{table}, line {missing[0].line}: there is no file {missing[0].name!r} in {folder}{more}; "
            "names are relative to that folder: correct the name or delete the row"
        )
    return {folder / row.name: row.prompt for row in rows}


def _sidecars(images: Sequence[Path]) -> dict[Path, str]:
    found = ((image, sidecar(image)) for image in images)
    return {image: caption for image, caption in found if caption is not None}


def sidecar(image: Path) -> str | None:
    """The caption in the `.txt` beside a picture; None where there is no such file. Raises PatinaError if not UTF-8."""
    text = image.with_suffix(".txt")
    return _first_line(text) if text.is_file() else None


def _first_line(path: Path) -> str:
    return next((line.strip() for line in _text(path).splitlines() if line.strip()), "")


def _no_captions(folder: Path, table: Path | None) -> str:
    here = folder / "metadata.csv"
    if table is None and here.is_file():
        return f"{folder}: no picture has a .txt beside it; to use the table that is there, set metadata_path: {here}"
    where = f"{table}: no picture of {folder} has a caption in it" if table else f"{folder}: no picture has a caption"
    output = table or here
    command = f"python tools/auto_label.py --input {shlex.quote(str(folder))} --output {shlex.quote(str(output))}"
    return f"{where}; write them with: {command}, then set metadata_path: {output}"


def read_table(path: Path) -> dict[str, str]:
    """Read a CSV of captions: file name as written (with forward slashes) -> prompt, in the file's order.

    The columns may have any of the usual names. With two columns a comma that nobody quoted belongs to the prompt.
    Raises PatinaError naming the line that cannot be used.
    """
    return {row.name: row.prompt for row in _rows(path)}


def read_header(path: Path) -> list[str]:
    """The column names of a CSV, in lower case. Raises PatinaError where the file has no first line."""
    for _, fields in _records(path):
        return [field.strip().lower() for field in fields]
    raise PatinaError(f"{path}, line 1: the file is empty; write {','.join(HEADER)} there")


def write_table(path: Path, rows: Mapping[str, str], header: Sequence[str] = HEADER) -> None:
    """Write rows of a name and a prompt, complete or not at all; line breaks within a prompt become spaces."""
    with replacing(path) as part, part.open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(header)
        table.writerows((name, re.sub(r"\s*[\r\n]+\s*", " ", prompt)) for name, prompt in rows.items())


def _rows(path: Path) -> list[_Row]:
    columns = read_header(path)
    name_at, prompt_at = (_column(path, columns, names) for names in (NAME_COLUMNS, PROMPT_COLUMNS))
    rows: dict[str, _Row] = {}
    for line, fields in list(_records(path))[1:]:
        fields = _fit(path, line, fields, columns, name_at)
        name = _inside(path, line, fields[name_at].strip())
        if name in rows:
            earlier = rows[name].line
            raise PatinaError(f"{path}, line {line}: {name!r} was captioned in line {earlier}; delete one of them")
        rows[name] = _Row(line, name, fields[prompt_at].strip())
    return list(rows.values())


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


def _inside(path: Path, line: int, name: str) -> str:
    """The name with forward slashes; refused where it is empty or leads out of the folder."""
    name = str(PurePosixPath(name.replace("\\", "/")))
    if name == ".":
        raise PatinaError(f"{path}, line {line}: the file name is empty; write it or delete the row")
    if name.startswith("/") or PureWindowsPath(name).drive or ".." in PurePosixPath(name).parts:
        raise PatinaError(f"{path}, line {line}: {name!r} leads out of the folder; write names relative to the folder")
    return name


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The records of a CSV that hold anything, each with the line it begins in."""
    reader, line = csv.reader(io.StringIO(_text(path), newline=""), strict=True), 1
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                yield line, fields
            line = reader.line_num + 1
    except csv.Error as error:
        raise PatinaError(
            f"{path}, line {line}: the double quotes do not match up ({error}); "
            "a quoted field begins and ends with one, and a quote within it is written twice"
        ) from error


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise PatinaError(f"{path}, line {line}: the text is not UTF-8; save the file again as UTF-8") from error
    except (FileNotFoundError, IsADirectoryError) as error:
        raise PatinaError(f"{path}: cannot be read ({error.strerror}); give the path of the file") from error
