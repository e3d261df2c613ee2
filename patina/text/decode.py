"""The text of a file in the encodings that Chinese and Western computers save: UTF-8, UTF-16 with its mark, GB18030."""

import codecs
from pathlib import Path

from patina.errors import PatinaError
from patina.text.records import LIMITS

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig", "UTF-8 with BOM"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)
"""Byte order mark, Python's codec, name."""
UNMARKED = (("utf-8", "UTF-8"), ("gb18030", "GBK/GB18030"))
"""Tried in this order: bytes that are UTF-8 are hardly ever meant as anything else."""
BINARY = (
    (b"PK\x03\x04", "an Excel workbook or another zip file", "give it its own suffix, such as .xlsx"),
    (b"\xd0\xcf\x11\xe0", "an old Office file", "open it and save it as .xlsx"),
    (b"%PDF", "a PDF", "copy the questions and answers into an .xlsx or .txt"),
    (
        b"PAR1",
        "a Parquet file",
        "save it as .jsonl: pandas.read_parquet(...).to_json(..., orient='records', lines=True)",
    ),
    (b"\x1f\x8b", "a gzip file", "unpack it first"),
)
"""How a file begins, what it then is, what to do."""
MOST_BYTES = 1 << 30
SAVE_AGAIN = "open it in the program that it came from and save it as UTF-8"


def read_text(path: Path) -> tuple[str, str]:
    """The text with plain newlines, and the name of its encoding.

    Raises PatinaError where the file is something else than its suffix says, or in no encoding that we know.
    """
    data = read_bytes(path)
    for mark, codec, name in MARKS:
        if data.startswith(mark):
            return _plain(_decode(path, data, codec, name)), name
    if b"\0" in data:
        raise PatinaError(
            f"{path.name}: holds zero bytes, which no text has, or is UTF-16 without its mark; {SAVE_AGAIN}"
        )
    for codec, name in UNMARKED:
        try:
            text = data.decode(codec)
        except UnicodeDecodeError:
            continue
        # Whatever else the bytes were, decoding them as GB18030 leaves private characters sooner or later.
        if codec == "utf-8" or not any("\ue000" <= c <= "\uf8ff" for c in text):
            return _plain(text), name
    raise PatinaError(f"{path.name}:{_bad_line(data)}: the text is neither UTF-8 nor GBK/GB18030; {SAVE_AGAIN}")


def read_bytes(path: Path) -> bytes:
    """The file's bytes. Raises PatinaError where it is too large or begins as another kind of file does."""
    if path.stat().st_size > MOST_BYTES:
        raise PatinaError(f"{path.name}: is larger than {MOST_BYTES >> 20} MB; {LIMITS}")
    data = path.read_bytes()
    for sign, what, remedy in BINARY:
        if data.startswith(sign):
            raise PatinaError(f"{path.name}: is not what its suffix says, but {what}; {remedy}")
    return data


def _decode(path: Path, data: bytes, codec: str, name: str) -> str:
    try:
        return data.decode(codec)
    except UnicodeDecodeError as error:
        raise PatinaError(f"{path.name}: begins as {name} does and goes on otherwise; {SAVE_AGAIN}") from error


def _plain(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _bad_line(data: bytes) -> int:
    """The line with the first byte that is not UTF-8."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return data.count(b"\n", 0, error.start) + 1
    raise AssertionError("asked for the fault of sound UTF-8")
