"""Say what is in training data and what is wrong with it: python tools/check_data.py FILE|DIR|CONFIG"""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from patina.errors import PatinaError, printable, run_command
from patina.text.check import Doubt, check, kinds
from patina.text.checklabels import check_labels, counts
from patina.text.labelled import survey_labelled
from patina.text.read import SHOWN, Reading, survey
from patina.text.repair import check_target, repair
from patina.text.rows import Row
from patina.text.shapes import columns_of
from patina.text.tokens import lengths

if TYPE_CHECKING:
    from patina.check.pictures import Checked
    from patina.data.buckets import Buckets

Survey = Callable[[Path, Mapping[str, str]], Reading]
Sort = Callable[[Sequence[Row]], Mapping[str, int]]
CONFIGS = (".yaml", ".yml")
TEXTS = (".xlsx", ".csv", ".tsv", ".txt", ".json", ".jsonl", ".md")
TEXT_OPTIONS = ("validation", "columns", "tokenizer", "repair", "labels")
CONFIGURED = ("metadata", "trigger", "resolution")
"""What a config of pictures says and a folder does not."""
PICTURE_OPTIONS = (*CONFIGURED, "output", "captioner")
RESOLUTION = 512
REPEATS = ("duplicate", "near duplicate", "mirrored duplicate")


class Texts(NamedTuple):
    """The files and folders to check as text."""

    training: Sequence[Path]
    validation: Sequence[Path]
    columns: Mapping[str, str] = {}
    """What headings mean, as a config has it."""
    labelled: bool = False
    """Whether they are texts with a label each, and no conversations."""


class Pictures(NamedTuple):
    """The folder of pictures to check, and what a run would do with it."""

    folder: Path
    table: Path | None
    trigger: str | None
    buckets: "Buckets"
    lines: str = "first"
    allow_links: bool = False


def main(argv: list[str] | None = None) -> int:
    """Exit code 0: can be trained on. 1: so it can, with doubts, and --strict was given. 2: cannot be trained on."""
    args = parse(argv)
    if sets := pictures_of(args):
        return check_picture_sets(sets, args)
    refuse(args, PICTURE_OPTIONS, "pictures")
    named = of_config(args.data) if args.data.suffix.lower() in CONFIGS else Texts([args.data], [], {}, args.labels)
    named = named._replace(validation=[*named.validation, *args.validation])
    return (check_labelled if named.labelled else check_texts)(named, args)


def pictures_of(args: argparse.Namespace) -> list[Pictures]:
    """The pictures to check: an image config's, then those of regularisation, or a folder's of mostly pictures."""
    from patina.data.buckets import Buckets, usual_step  # deferred: texts need none of it
    from patina.data.captions import table_in

    if args.data.suffix.lower() in CONFIGS:
        from patina.configfile import load

        config = load(args.data)
        if config.task_type != "image":
            return []
        refuse(args, CONFIGURED, "folders; a config says it itself")
        data, sizes, links = config.dataset, config.buckets, config.dataset.allow_links
        trained = [
            Pictures(one.folder, one.table or table_in(one.folder), one.trigger, sizes, one.rules.caption_lines, links)
            for one in config.picture_sets
        ]
        return [
            *trained,
            *([Pictures(data.reg_dir, None, None, sizes, data.caption_lines, links)] if data.reg_dir else []),
        ]
    if not args.data.is_dir() or not holds_pictures(args.data):
        return []
    beside = args.data / "metadata.csv"
    table = args.metadata or (beside if beside.is_file() else None)
    resolution = args.resolution or RESOLUTION
    return [Pictures(args.data, table, args.trigger, Buckets(resolution, usual_step(resolution)))]


def holds_pictures(folder: Path) -> bool:
    """Whether a folder holds more pictures than texts that are no caption of one."""
    from patina.data.images import EXTENSIONS

    files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    pictures = {path.stem for path in files if path.suffix.lower() in EXTENSIONS}
    texts = [path for path in files if path.suffix.lower() in TEXTS and path.name != "metadata.csv"]
    return len(pictures) > len([path for path in texts if path.stem not in pictures])


def refuse(args: argparse.Namespace, options: Sequence[str], purpose: str) -> None:
    """Raises PatinaError where an option is given that would be ignored."""
    for option in options:
        if getattr(args, option):
            raise PatinaError(f"--{option}: is for {purpose}; leave it out")


def check_picture_sets(sets: Sequence[Pictures], args: argparse.Namespace) -> int:
    """Report on pictures and captions, on all of them in one page with --output; the exit code."""
    from patina.check.findings import ERROR
    from patina.check.page import FILES, check_output, write_report

    refuse(args, TEXT_OPTIONS, "texts")
    if args.output is not None:
        for named in sets:
            check_output(args.output, named.folder, args.force)
    checked = [check_picture_set(named, args.captioner) for named in sets]
    if args.output is not None:
        write_report(checked, args.output)
        say([f"written: {args.output / FILES[0]}"])
    levels = {one.level for found in checked for one in found.findings}
    return 2 if ERROR in levels else 1 if levels and args.strict else 0


def check_picture_set(named: Pictures, captioner: str | None) -> "Checked":
    """Say what is wrong with a folder's pictures and captions."""
    from patina.check.findings import ERROR, grouped
    from patina.check.pictures import check_pictures

    checked = check_pictures(*named)
    if captioner is not None:
        checked = with_meaning(checked, captioner)
    say([f"{named.folder}: {len(checked.pictures)} pictures, captions from {named.table or '.txt files'}"])
    say(f"  {number} of {width}x{height}" for (width, height), number in checked.buckets.items())
    for level, title, findings in grouped(checked.findings):
        say([f"{level}: {title}: {len(findings)}", *_some([f"{one.name}: {one.sentence}" for one in findings])])
    faults = any(one.level == ERROR for one in checked.findings)
    say(["cannot be trained on" if faults else "can be trained on" + (", with doubts" if checked.findings else "")])
    return checked


def with_meaning(checked: "Checked", model: str) -> "Checked":
    """What was found, and the pictures that show nearly the same to a captioner."""
    from patina.caption.captioner import choose_device
    from patina.caption.coca import CocaCaptioner
    from patina.check.meaning import meaning_findings

    captioner = CocaCaptioner(model)
    captioner.load(*choose_device("auto"))
    known = {one.name for one in checked.findings if one.rule in REPEATS}
    found = meaning_findings([one.path for one in checked.pictures], checked.folder, captioner, known)
    return checked._replace(findings=[*checked.findings, *found])


def of_config(path: Path) -> Texts:
    """What a config of texts names."""
    from patina.configfile import load  # deferred: only configs need the schema

    config = load(path)
    labelled = config.task_type == "text-classification"
    return Texts(places(config.train_data), places(config.validation_data), columns_of(config.text.columns), labelled)


def places(written: str | Sequence[str] | None) -> list[Path]:
    """The paths that a key of the config names."""
    named = () if written is None else (written,) if isinstance(written, str) else written
    return [Path(place) for place in named]


def check_texts(named: Texts, args: argparse.Namespace) -> int:
    """Report on all of it, repair what is asked; the exit code, which with --repair is the copy's."""
    if args.repair is not None:
        for source in named.training:
            check_target(args.repair, source, args.force)
    columns = {**named.columns, **columns_of(args.columns)}
    training, validation = (read_all(paths, columns) for paths in (named.training, named.validation))
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


def check_labelled(named: Texts, args: argparse.Namespace) -> int:
    """Report on texts with a label each; the exit code."""
    refuse(args, ("repair",), "conversations")
    columns = {**named.columns, **columns_of(args.columns)}
    training, validation = (
        read_all(paths, columns, survey_labelled, counts) for paths in (named.training, named.validation)
    )
    for doubt in (doubts := check_labels(training.rows, validation.rows)):
        show(doubt)
    if args.tokenizer is not None and training.rows:
        tell_lengths(training, args.tokenizer)
    faults = [*training.faults, *validation.faults]
    say(["cannot be trained on" if faults else "can be trained on" + (", with doubts" if doubts else "")])
    return 2 if faults else 1 if doubts and args.strict else 0


def read_all(paths: Sequence[Path], columns: Mapping[str, str], survey: Survey = survey, sort: Sort = kinds) -> Reading:
    """All that these files hold, reported one by one."""
    whole = Reading([], [], [])
    for path in paths:
        reading = survey(path, columns)
        report(path, reading, sort(reading.rows))
        whole = Reading(whole.rows + reading.rows, whole.notes + reading.notes, whole.faults + reading.faults)
    return whole


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; argparse explains itself and exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(description="Check training data; nothing is changed.")
    parser.add_argument(
        "data",
        type=Path,
        metavar="FILE|DIR|CONFIG",
        help="xlsx, csv, tsv, txt, json, jsonl, md; a folder of texts or pictures; a run's YAML",
    )
    parser.add_argument(
        "--validation", type=Path, nargs="+", default=[], metavar="FILE", help="rows that training must not have seen"
    )
    parser.add_argument(
        "--columns", nargs="+", default=[], type=column, metavar="KEY=HEADING", help="question=标题 answer=正文"
    )
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="a model's folder: say how many tokens rows have")
    parser.add_argument("--labels", action="store_true", help="the rows are texts with a label each (classification)")
    parser.add_argument("--strict", action="store_true", help="exit with 1 where anything deserves a look")
    parser.add_argument("--repair", type=Path, metavar="OUT.jsonl", help="write a copy without faults and repeats")
    parser.add_argument("--force", action="store_true", help="write copy or report even over a file that is there")
    parser.add_argument("--metadata", type=Path, metavar="FILE", help="a folder's captions (default: metadata.csv)")
    parser.add_argument("--trigger", metavar="WORD", help="what every caption should begin with")
    parser.add_argument("--resolution", type=edge, metavar="PIXELS", help=f"of the run (default: {RESOLUTION})")
    parser.add_argument("--captioner", metavar="MODEL", help="a CoCa: find pictures that show nearly the same")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="write report.html and sheet.png there")
    return parser.parse_args(argv)


def edge(text: str) -> int:
    """A resolution that a run can have."""
    if not text.isdecimal() or not 64 <= int(text) <= 4096:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 64 to 4096")
    return int(text)


def column(text: str) -> str:
    """KEY=HEADING."""
    if "=" not in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=HEADING")
    return text


def report(path: Path, reading: Reading, sorts: Mapping[str, int]) -> None:
    """What was read, how, and what could not be; `sorts`: how many rows there are of each."""
    say([f"{path}: {len(reading.rows)} rows{_listed(sorts)}"])
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
