"""Say what is in training data and what is wrong with it: python tools/check_data.py FILE|DIR [--repair OUT.jsonl]"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from patina.errors import printable, run_command
from patina.text.check import Doubt, check, kinds
from patina.text.read import SHOWN, Reading, survey
from patina.text.repair import check_target, repair
from patina.text.tokens import lengths


def main(argv: list[str] | None = None) -> int:
    """Exit code 0: can be trained on. 1: so it can, with doubts, and --strict was given. 2: cannot be trained on."""
    args = parse(argv)
    if args.repair is not None:
        check_target(args.repair, args.data, args.force)
    columns = dict(pair.split("=", 1) for pair in args.columns)
    training, validation = survey(args.data, columns), Reading([], [], [])
    report(args.data, training)
    if args.validation is not None:
        validation = survey(args.validation, columns)
        report(args.validation, validation)
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


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; argparse explains itself and exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(description="Check training data; nothing is changed.")
    parser.add_argument("data", type=Path, metavar="FILE|DIR", help="xlsx, csv, tsv, txt, json, jsonl, md, or a folder")
    parser.add_argument("--validation", type=Path, metavar="FILE", help="rows that training must not have seen")
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
