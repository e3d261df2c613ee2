"""Say what is in training data and what is wrong with it: python tools/check_data.py FILE|DIR|CONFIG"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from patina.errors import PatinaError, printable, run_command
from patina.text.check import Doubt, check, kinds
from patina.text.read import SHOWN, Reading, survey
from patina.text.repair import check_target, repair
from patina.text.tokens import lengths

CONFIGS = (".yaml", ".yml")


class Texts(NamedTuple):
    """The files and folders to check as text."""

    training: Sequence[Path]
    validation: Sequence[Path]


def main(argv: list[str] | None = None) -> int:
    """Exit code 0: can be trained on. 1: so it can, with doubts, and --strict was given. 2: cannot be trained on."""
    args = parse(argv)
    named = of_config(args.data) if args.data.suffix.lower() in CONFIGS else Texts([args.data], [])
    return check_texts(named._replace(validation=[*named.validation, *args.validation]), args)


def of_config(path: Path) -> Texts:
    """What a config names. Raises PatinaError where it trains on something else than texts."""
    from patina.configfile import load  # deferred: only configs need the schema

    config = load(path)
    if config.task_type == "image":
        raise PatinaError(f"{path}: task_type is image; give a config of text, or a file or folder of texts")
    return Texts(places(config.train_data), places(config.validation_data))


def places(written: str | Sequence[str] | None) -> list[Path]:
    """The paths that a key of the config names."""
    named = () if written is None else (written,) if isinstance(written, str) else written
    return [Path(place) for place in named]


def check_texts(named: Texts, args: argparse.Namespace) -> int:
    """Report on all of it, repair what is asked; the exit code, which with --repair is the copy's."""
    if args.repair is not None:
        for source in named.training:
            check_target(args.repair, source, args.force)
    columns = dict(pair.split("=", 1) for pair in args.columns)
    training, validation = (read_all(paths, columns) for paths in named)
    doubts = check(training.rows, validation.rows)
    for doubt in doubts:
        show(doubt)
    if args.tokenizer is not None and training.rows:
        tell_lengths(training, args.tokenizer)
    faults = [*training.faults, *validation.faults]
    if args.repair is not None:
        say(repair(training, args.repair))
        faults = validation.faults
    say(["cannot be trained on" if faults else "can be trained on" + (", with doubts" if doubts else "")])
    return 2 if faults else 1 if doubts and args.strict else 0


def read_all(paths: Sequence[Path], columns: Mapping[str, str]) -> Reading:
    """All that these files hold, reported one by one."""
    whole = Reading([], [], [])
    for path in paths:
        reading = survey(path, columns)
        report(path, reading)
        whole = Reading(whole.rows + reading.rows, whole.notes + reading.notes, whole.faults + reading.faults)
    return whole


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; argparse explains itself and exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(description="Check training data; nothing is changed.")
    parser.add_argument(
        "data",
        type=Path,
        metavar="FILE|DIR|CONFIG",
        help="xlsx, csv, tsv, txt, json, jsonl, md; a folder; a run's YAML",
    )
    parser.add_argument(
        "--validation", type=Path, nargs="+", default=[], metavar="FILE", help="rows that training must not have seen"
    )
    parser.add_argument(
        "--columns", nargs="+", default=[], type=column, metavar="KEY=HEADING", help="question=标题 answer=正文"
    )
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="a model's folder: say how many tokens rows have")
    parser.add_argument("--strict", action="store_true", help="exit with 1 where anything deserves a look")
    parser.add_argument("--repair", type=Path, metavar="OUT.jsonl", help="write a copy without faults and repeats")
    parser.add_argument("--force", action="store_true", help="write the copy even over a file that is there")
    return parser.parse_args(argv)


def column(text: str) -> str:
    """KEY=HEADING."""
    if "=" not in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=HEADING")
    return text


def report(path: Path, reading: Reading) -> None:
    """What was read, how, and what could not be."""
    say([f"{path}: {len(reading.rows)} rows{_listed(kinds(reading.rows))}"])
    say(f"  {note}" for note in reading.notes)
    if reading.faults:
        say([f"faults: {len(reading.faults)}; none of these can be trained on", *_some(reading.faults)])


def _listed(counts: Mapping[str, int]) -> str:
    return f" ({', '.join(f'{name}: {count}' for name, count in counts.items())})" if counts else ""


def show(doubt: Doubt) -> None:
    """A doubt and its cases."""
    say([f"{doubt.what}: {len(doubt.where)}; {doubt.remedy}", *_some(doubt.where)])


def _some(lines: Sequence[str]) -> list[str]:
    more = [f"  and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return [*(f"  {line}" for line in lines[:SHOWN]), *more]


def tell_lengths(reading: Reading, folder: Path) -> None:
    """Tokens a row, which is what max_length is chosen by."""
    found = lengths(reading.rows, folder)
    percentiles = ", ".join(f"p{percent} {tokens:,}" for percent, tokens in found.percentiles.items())
    say([f"tokens a row: {percentiles}, longest {found.longest:,} ({found.place}); {found.total:,} in all"])


def say(lines: Iterable[str]) -> None:
    """Print lines; what files hold is shown and never obeyed by the terminal."""
    for line in lines:
        print(printable(line).replace("\n", " "))


if __name__ == "__main__":
    run_command(main)
