"""One target under atheris: `python -m tests.fuzz.target NAME FOLDER [libFuzzer's options]`, until its time is up.

A finding is an exception that is no PatinaError, an answer that does not name the file, or libFuzzer's own: an input
that takes longer than `-timeout`, or more memory than `-rss_limit_mb`.
"""

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["patina"]):
    from patina.emphasis import weighed
    from patina.errors import PatinaError
    from patina.promptline import parse_line
    from tests.fuzz.readers import READERS, Reader


def of_file(reader: Reader, path: Path) -> Callable[[bytes], None]:
    """Writes what it is given to `path` and has it read; the sound files first, for which libraries import others."""

    def tried(data: bytes) -> None:
        path.write_bytes(reader.packed(data))
        try:
            reader.read(path)
        except PatinaError as error:
            told = str(error)
        else:
            return
        assert str(path) in told or path.name in told, told

    for seed in reader.seeds:
        tried(seed)
    return tried


def of_text(read: Callable[[str], object]) -> Callable[[bytes], None]:
    """Has what it is given read as a text."""

    def tried(data: bytes) -> None:
        with suppress(PatinaError):
            read(data.decode("utf-8", "ignore"))

    return tried


def target(name: str, folder: Path) -> Callable[[bytes], None]:
    """The function of bytes that is tried; `folder` takes its file."""
    texts = {"emphasis": weighed, "prompt line": parse_line}
    if name in texts:
        return of_text(texts[name])
    return of_file(READERS[name], folder / f"file{READERS[name].ending}")


if __name__ == "__main__":
    atheris.Setup([sys.argv[0], *sys.argv[3:]], target(sys.argv[1], Path(sys.argv[2])))
    atheris.Fuzz()
