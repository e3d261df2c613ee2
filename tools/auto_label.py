"""Caption the pictures of a folder into a metadata table: python tools/auto_label.py --input DIR --output FILE.csv"""

import argparse
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patina.errors import PatinaError, printable, run_command, speaks

if TYPE_CHECKING:
    from patina.caption.backends import Chosen
    from patina.caption.crew import Crew
    from patina.caption.label import Outcome, Plan
    from patina.caption.polish import Polish

DEMO_CAPTIONER = Path(__file__).resolve().parents[1] / "data" / "demo" / "captioner"
CPU_BATCH = 8
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a cell begins with that a spreadsheet computes (OWASP, "CSV Injection")."""


def main(argv: list[str] | None = None) -> int:
    """Exit code 0: all captioned. 1: some pictures could not be read, the others are captioned."""
    args = parse(argv)
    if args.review:
        return review(args)
    # torch and open_clip take seconds to import: not before the command line has been understood.
    from patina.caption.backends import choose
    from patina.caption.crew import crew
    from patina.caption.label import plan_labels

    polish = polishing(args)
    plan = plan_labels(
        args.input,
        args.output,
        args.recursive,
        mode=args.mode,
        limit=args.limit,
        hf=args.hf,
        sidecar=f".{args.sidecar}",
    )
    team = crew(args.device)
    team.wait()  # all have looked at the table before one of them writes it
    counts = f"{len(plan.images)} images in {plan.folder}, {plan.captioned()} already captioned"
    if not plan.todo and not plan.store.journal.exists():
        _tell(f"{counts}: nothing to do")
        return 0
    chosen = choose(args.backend or ["auto"], wishes(args), demo_captioner)
    captioner = chosen.captioner
    device = load(chosen, args)
    _tell(f"{captioner.name} ({captioner.fingerprint()}) on {device}: {counts}", flush=True)
    if knows_the_demo_alone(args):
        _tell("It knows the demo's things alone; for pictures of your own: --backend coca, or see docs/labelling.md")
    batch = args.batch_size or (chosen.batch if device == "cuda" else min(chosen.batch, CPU_BATCH))
    outcome = label(plan, chosen, polish, batch, team, args)
    if team.rank:
        return 0  # the first speaks for all
    report(plan, outcome, args)
    return 1 if outcome.unreadable else 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; argparse explains itself and exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(description="Caption the pictures of a folder; run again, it goes on.")
    add_places(parser.add_argument_group("pictures and captions"))
    add_backends(parser.add_argument_group("who writes"))
    add_style(parser.add_argument_group("what becomes of a caption"))
    add_review(parser.add_argument_group("proof-reading"))
    args = parser.parse_args(argv)
    if args.review and args.output is None:
        parser.error("--review edits a table: it goes with --output FILE.csv")
    if args.port and not args.review:
        parser.error("--port is where the page of --review is served: it goes with --review")
    if (args.output is None) == (args.sidecar is None):
        parser.error("say where the captions go: --output FILE.csv, or --sidecar txt for a text beside each picture")
    if args.hf and args.output is None:
        parser.error("--hf names the columns of a table: it goes with --output")
    return args


def add_places(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--input", type=Path, required=True, metavar="DIR", help="the folder with the pictures")
    group.add_argument("--output", type=Path, metavar="FILE.csv", help="the table; its rows are kept")
    group.add_argument("--sidecar", choices=("txt", "caption"), help="write a text beside each picture instead")
    group.add_argument("--hf", action="store_true", help="name the columns file_name,text (Hugging Face)")
    group.add_argument("--recursive", action="store_true", help="look into subfolders too")
    modes = ("missing", "overwrite", "append")
    group.add_argument("--mode", choices=modes, default="missing", help="what to do with captions that are there")
    group.add_argument("--limit", type=positive, metavar="N", help="caption at most N pictures")
    group.add_argument("--dry-run", action="store_true", help="caption and print, write nothing; good with --limit")


def add_backends(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--backend",
        action="append",
        metavar="NAME[=MODEL]",
        help="auto, coca, blip, blip2, florence2, vlm, wd, openai, offline; "
        "twice to feed tags to a model: --backend wd --backend vlm",
    )
    group.add_argument("--model", default="", help="folder or org/name; of a CoCa also ARCH=FILE or ARCH:TAG")
    group.add_argument("--prompt", help="what to ask; {tags} stands for what a tagger before it found")
    group.add_argument("--max-tokens", type=positive, metavar="N", help="tokens of a caption at most")
    group.add_argument("--threshold-general", type=float, default=0.35, metavar="P", help="wd: least probability")
    group.add_argument("--threshold-character", type=float, default=0.85, metavar="P", help="wd: of a character's name")
    group.add_argument("--url", default="http://127.0.0.1:8000/v1", help="openai: the server (default: %(default)s)")
    group.add_argument("--key-env", default="", metavar="NAME", help="openai: the variable that holds the key")
    group.add_argument("--seed", type=int, default=0, help="openai: sent along; all else writes without chance")
    group.add_argument("--quantize", choices=("none", "8bit", "4bit"), default="none", help="smaller weights")
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    group.add_argument("--batch-size", type=batch_size, metavar="N", help="pictures at a time (default: auto)")
    group.add_argument("--workers", type=positive, default=workers(), metavar="N", help="reading threads (%(default)s)")


def workers() -> int:
    """Threads that keep up with a GPU; more only help on slow network disks."""
    return min(os.cpu_count() or 1, 8)


def add_style(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--trigger", default="", metavar="WORD", help="stands once in every new caption")
    group.add_argument("--template", default="{trigger}, {caption}", help="and where (default: %(default)s)")
    prune = ("auto", "list", "off")
    group.add_argument("--prune-style", choices=prune, default="auto", help="remove words of style, or only list them")
    group.add_argument("--replace", action="append", default=[], metavar="A=B", type=pair, help="B instead of A")
    group.add_argument("--blacklist", default="", metavar="A,B", help="words and tags to leave out")


def add_review(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--review", action="store_true", help="edit the captions of --output in a browser; label none")
    group.add_argument("--port", type=port, default=0, metavar="N", help="where, on 127.0.0.1 (default: any free)")


def review(args: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C, which is the ordinary end of it: exit code 0."""
    from patina.review.captions import open_proofs
    from patina.review.server import serving

    proofs = open_proofs(args.input, args.output, recursive=args.recursive, trigger=args.trigger, hf=args.hf)
    if out := proofs.left_out:
        _tell(f"{len(out)} links that lead out of {args.input} are not shown, {out[0]} the first")
    with serving(proofs, args.port) as (server, address):
        _tell(f"{len(proofs.images)} pictures of {args.input} and their captions in {args.output}; open\n{address}")
        print("The address is for you alone: who has it can edit. Ctrl-C ends this.", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()
    return 0


def polishing(args: argparse.Namespace) -> "Polish":
    from patina.caption.polish import Polish

    blacklist = tuple(word.strip() for word in args.blacklist.split(",") if word.strip())
    return Polish(args.trigger, args.template, args.prune_style, tuple(args.replace), blacklist)


def wishes(args: argparse.Namespace):
    from patina.caption.backends import Wish
    from patina.caption.style import lexicon

    return Wish(
        model=args.model,
        prompt=args.prompt,
        max_tokens=args.max_tokens,
        quantize=args.quantize,
        general=args.threshold_general,
        character=args.threshold_character,
        url=args.url,
        key_env=args.key_env,
        seed=args.seed,
        styles=() if args.prune_style == "off" else lexicon().rankable(),
    )


def load(chosen: "Chosen", args: argparse.Namespace) -> str:
    """Have the captioner ready; returns where it runs."""
    if not chosen.loads:
        return "cpu"
    from patina.caption.captioner import choose_device

    device, dtype = choose_device(args.device)
    chosen.captioner.load(device, dtype)
    return device.type


def label(
    plan: "Plan", chosen: "Chosen", polish: "Polish", batch: int, team: "Crew", args: argparse.Namespace
) -> "Outcome":
    from patina.caption.label import label_folder

    try:
        return label_folder(
            plan,
            chosen.captioner,
            polish=polish,
            batch_size=batch,
            workers=args.workers,
            read=chosen.read,
            alike=chosen.alike,
            write=not args.dry_run,
            crew=team,
        )
    except KeyboardInterrupt:
        if not args.dry_run:
            _tell(f"\n{plan.table}: what is done is kept; the same command goes on with the rest", file=sys.stderr)
        raise


def report(plan: "Plan", outcome: "Outcome", args: argparse.Namespace) -> None:
    """Say where the captions are and what deserves a look."""
    if args.dry_run:
        for name, prompt in outcome.prompts.items():
            _tell(f"{name}: {prompt}")
        _tell(f"{outcome.done} captions, none written (--dry-run)")
    else:
        _tell(f"{plan.table}: {outcome.done} new captions; proof-read it before training")
    for source, count in outcome.sources.items():
        _tell(f"{count} captions from {source}")
    report_pruned(outcome, args.prune_style)
    if outcome.shortened:
        _tell(f"{outcome.shortened} captions were cut at a word: Stable Diffusion reads 75 tokens")
    untriggered = plan.rows_without(args.trigger) if args.trigger and args.template.startswith("{trigger}") else []
    computed = [name for name, prompt in outcome.prompts.items() if args.output and prompt.startswith(FORMULA)]
    notes = {
        "captions begin as a formula does, which a spreadsheet may compute; import the table as text": computed,
        "captions reach the length limit and may lack their end": outcome.cut,
        "rows were kept although their picture is gone": plan.gone(),
        "rows were kept that do not begin with the trigger": untriggered,
    }
    for note, names in notes.items():
        if names:
            _tell(f"{len(names)} {note}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}")
    if outcome.unreadable:
        _tell(f"{len(outcome.unreadable)} images could not be read:", file=sys.stderr)
        for sentence in outcome.unreadable.values():
            _tell(sentence, file=sys.stderr)


def report_pruned(outcome: "Outcome", prune: str) -> None:
    """Say which words of style were removed and why, the most frequent first."""
    if not outcome.pruned:
        return
    phrases = [f"{phrase!r} ({why}, {count}x)" for (phrase, why), count in outcome.pruned.most_common(12)]
    verb = "style pruned" if prune == "auto" else "--prune-style auto would prune"
    _tell(f"{verb}: {', '.join(phrases)}{', ...' if len(outcome.pruned) > 12 else ''}")


def positive(text: str) -> int:
    """A whole number from 1 up."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def port(text: str) -> int:
    """A port that needs no rights of the machine's owner."""
    if not 1024 <= (number := int(text)) <= 65535:
        raise ValueError(text)
    return number


def batch_size(text: str) -> int | None:
    """A whole number from 1 up, or `auto`: as many as the backend takes, halved where they do not fit."""
    return None if text == "auto" else positive(text)


def pair(text: str) -> tuple[str, str]:
    """`A=B`, where B may be empty."""
    old, equals, new = text.partition("=")
    if not old or not equals:
        raise ValueError(text)
    return old, new


def knows_the_demo_alone(args: argparse.Namespace) -> bool:
    """Whether the embedded captioner is to look at pictures that it was not made for."""
    embedded = not args.model and (args.backend or ["auto"])[-1] == "auto"
    return embedded and DEMO_CAPTIONER.parent not in args.input.resolve().parents


def demo_captioner() -> str:
    """The captioner that comes with the repository."""
    if not DEMO_CAPTIONER.is_dir():
        raise PatinaError(
            f"{DEMO_CAPTIONER}: the demo's captioner is not there; name a model, for example "
            "--model coca_ViT-L-14:mscoco_finetuned_laion2b_s13b_b90k"
        )
    return str(DEMO_CAPTIONER)


def _tell(text: str, **where: Any) -> None:
    """Print a line that may hold names and captions, which are shown and never obeyed by the terminal."""
    if speaks():
        print(printable(text), **where)


if __name__ == "__main__":
    run_command(main)
