"""Tables of captions in JSON, one object a line or kohya's one object for all, and the text of any table's bytes."""

import json
import math
from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

from patina.data.images import EXTENSIONS
from patina.errors import PatinaError
from patina.files import there

NAME_COLUMNS = ("filename", "file_name", "image", "image_path", "path", "image_file")
PROMPT_COLUMNS = ("prompt", "text", "caption", "captions", "tags")
WEIGHT_COLUMN = "weight"
UTF16 = (b"\xff\xfe", b"\xfe\xff")
UTF8 = ("utf-8", "utf-8-sig")
LEAST_COMMON = 0.5
"""Share of the characters beyond ASCII that must be everyday Chinese for a text to be taken as GB18030, in which most
bytes mean something: other encodings come out as rare characters."""


class Row(NamedTuple):
    """What a table says of one picture."""

    where: str
    """The line or key, as a message names it."""
    name: str
    """Relative to the folder, with forward slashes."""
    prompt: str
    weight: float = 1.0
    """What the picture's error is multiplied by."""


class Read(NamedTuple):
    """The text of a file, without a byte order mark."""

    text: str
    encoding: str
    """As Python calls it: what the text is to be written in again, mark and all."""


def json_rows(path: Path, text: str, folder: Path) -> list[Row]:
    """The rows of a `.jsonl` (one object a line: file name and caption) or of kohya's `.json`.

    That is one object: file name, or the name without its ending of a picture in `folder`, -> `caption`, then `tags`.
    A list of captions becomes one a line. Raises PatinaError naming the line or key that cannot be used.
    """
    found = _lines(path, text) if path.suffix.lower() == ".jsonl" else _kohya(path, text, folder)
    rows: dict[str, Row] = {}
    for row in found:
        if row.name in rows:
            raise PatinaError(
                f"{path}, {row.where}: {row.name!r} was captioned in {rows[row.name].where}; delete one of them"
            )
        rows[row.name] = row
    return list(rows.values())


def _lines(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"line {number}"
        given = {key.lower(): value for key, value in _object(path, where, line).items()}
        name = _value(path, where, given, NAME_COLUMNS)
        if not isinstance(name, str):
            raise PatinaError(f"{path}, {where}: the file name is not a text; write it between double quotes")
        prompt = _prompt(path, where, _value(path, where, given, PROMPT_COLUMNS))
        weight = weight_of(path, where, given.get(WEIGHT_COLUMN))
        yield Row(where, inside(path, where, name.strip()), prompt, weight)


def _value(path: Path, where: str, given: dict[str, Any], names: tuple[str, ...]) -> Any:
    for name in names:
        if name in given:
            return given[name]
    raise PatinaError(
        f"{path}, {where}: there is neither {' nor '.join(names)}; write lines such as "
        '{"file_name": "a.png", "text": "a cat"}'
    )


def _kohya(path: Path, text: str, folder: Path) -> Iterator[Row]:
    for key, value in _object(path, "line 1", text).items():
        where = f"key {key!r}"
        name = _named(path, where, folder, inside(path, where, key))
        if not isinstance(value, dict):
            yield Row(where, name, _prompt(path, where, value))
            continue
        tags = _tags(path, where, value.get("tags"))
        captions = _prompt(path, where, value.get("caption")).split("\n")
        prompt = "\n".join(", ".join(part for part in (line, tags) if part) for line in captions)
        yield Row(where, name, prompt, weight_of(path, where, value.get(WEIGHT_COLUMN)))


def _tags(path: Path, where: str, value: Any) -> str:
    if isinstance(value, list) and all(isinstance(tag, str) for tag in value):
        return ", ".join(value)
    return _prompt(path, where, value)


def _named(path: Path, where: str, folder: Path, name: str) -> str:
    """The file of a name that may lack its ending; the name itself where there is none."""
    if there(folder / name):
        return name
    beside = (folder / name).parent
    names = sorted(file.name for file in beside.iterdir()) if beside.is_dir() else []
    stem = PurePosixPath(name).name
    found = [file for file in names if Path(file).stem == stem and Path(file).suffix.lower() in EXTENSIONS]
    if len(found) > 1:
        raise PatinaError(f"{path}, {where}: may be {' or '.join(found)}; write the name with its ending")
    return str(PurePosixPath(name).with_name(found[0])) if found else name


def _object(path: Path, where: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        line = where if path.suffix.lower() == ".jsonl" else f"line {error.lineno}"
        raise PatinaError(f"{path}, {line}: is not JSON ({error.msg}); correct the line") from error
    except (RecursionError, ValueError) as error:  # a number of thousands of digits is a ValueError
        raise PatinaError(f"{path}, {where}: is not a table of captions ({error}); take it out") from error
    if not isinstance(value, dict):
        raise PatinaError(f"{path}, {where}: is not an object; write it between {{ and }}, with names and captions")
    return value


def _prompt(path: Path, where: str, value: Any) -> str:
    texts = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(text, str) for text in texts):
        raise PatinaError(f"{path}, {where}: the caption is not a text; write it between double quotes")
    if any("\ud800" <= char <= "\udfff" for text in texts for char in text):
        raise PatinaError(f"{path}, {where}: the caption holds half a character; write it anew")
    return "\n".join(text.strip() for text in texts if text.strip())


def weight_of(path: Path, where: str, value: Any) -> float:
    """The weight of a picture, of which nothing or an empty field means 1. Raises PatinaError for one below 0."""
    if value is None or value == "":
        return 1.0
    try:
        weight = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise PatinaError(
            f"{path}, {where}: {WEIGHT_COLUMN} is {str(value)[:40]!r}; write a number from 0 on, such as 0.5, "
            "or leave it empty"
        )
    return weight


def inside(path: Path, where: str, name: str) -> str:
    """The name with forward slashes; refused where it is empty or leads out of the folder."""
    name = str(PurePosixPath(name.replace("\\", "/")))
    if name == ".":
        raise PatinaError(f"{path}, {where}: the file name is empty; write it or delete the row")
    if name.startswith("/") or PureWindowsPath(name).drive or ".." in PurePosixPath(name).parts:
        raise PatinaError(f"{path}, {where}: {name!r} leads out of the folder; write names relative to the folder")
    if any(char == "\0" or "\ud800" <= char <= "\udfff" for char in name):
        raise PatinaError(f"{path}, {where}: {name!r} cannot be a file's name; correct it")
    return name


def sayable(name: str) -> bool:
    """Whether a table that says this name would be read as saying it."""
    half = any("\ud800" <= char <= "\udfff" for char in name)
    return not half and "\\" not in name and name == name.strip()


def read_text(path: Path) -> Read:
    """The text of a file in UTF-8, in UTF-16 with its mark, or in GB18030 (of which GBK is a part).

    Raises PatinaError where it is in none of them, or cannot be read.
    """
    return read_bytes(path, file_bytes(path))


def read_bytes(path: Path, data: bytes) -> Read:
    """As `read_text`, of bytes that were read from `path` already."""
    if data.startswith(UTF16):
        try:
            return Read(data.decode("utf-16"), "utf-16")
        except UnicodeDecodeError as error:
            raise PatinaError(f"{path}: begins as UTF-16 and is not; save the file again as UTF-8") from error
    try:
        return Read(decoded(path, data), "utf-8-sig" if data.startswith(BOM_UTF8) else "utf-8")
    except PatinaError:
        if (text := _chinese(data)) is None:
            raise
        return Read(text, "gb18030")


def _chinese(data: bytes) -> str | None:
    try:
        text = data.decode("gb18030")
    except UnicodeDecodeError:
        return None
    beyond = [char for char in text if not char.isascii()]
    common = sum(bool(char.encode("gb2312", "ignore")) for char in beyond)
    return text if common >= LEAST_COMMON * len(beyond) else None


def decoded(path: Path, data: bytes) -> str:
    """The text of a file's bytes, without a byte order mark. Raises PatinaError where it is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise PatinaError(f"{path}, line {line}: the text is not UTF-8; save the file again as UTF-8") from error


def file_bytes(path: Path) -> bytes:
    """What is in the file. Raises PatinaError where there is none."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise PatinaError(f"{path}: cannot be read ({error.strerror}); give the path of the file") from error
