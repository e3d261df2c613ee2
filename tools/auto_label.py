"""Caption the pictures of a folder into a metadata table: python tools/auto_label.py --input DIR --output FILE.csv"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from patina.errors import PatinaError, run_command

if TYPE_CHECKING:
    from patina.caption.label import Outcome, Plan

DEMO_CAPTIONER = Path(__file__).resolve().parents[1] / "data" / "demo" / "captioner"


def main(argv: list[str] | None = None) -> int:
    """Exit code 0: all captioned. 1: some pictures could not be read, the others are captioned."""
    args = parse(argv)
    # torch and open_clip take seconds to import: not before the command line has been understood.
    from patina.caption.captioner import choose_device
    from patina.caption.label import label_folder, plan_labels

    plan = plan_labels(args.input, args.output, args.recursive)
    counts = f"{len(plan.images)} images in {plan.folder}, {len(plan.images) - len(plan.todo)} already captioned"
    if not plan.todo:
        print(f"{counts}: nothing to do")
        return 0
    device, dtype = choose_device(args.device)
    from patina.caption.coca import CocaCaptioner

    captioner = CocaCaptioner(args.model or demo_captioner())
    captioner.load(device, dtype)
    print(f"{captioner.name} ({captioner.fingerprint()}) on {device}: {counts}", flush=True)
    outcome = label_folder(plan, captioner, trigger=args.trigger, batch_size=args.batch_size, workers=args.workers)
    report(plan, outcome, [] if not args.trigger else plan.rows_without(args.trigger))
    return 1 if outcome.unreadable else 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; argparse explains itself and exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(description="Caption the pictures of a folder; run again, it goes on.")
    parser.add_argument("--input", type=Path, required=True, metavar="DIR", help="the folder with the pictures")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.csv", help="the table; its rows are kept")
    parser.add_argument("--trigger", default="", metavar="WORD", help="put in front of every new caption")
    parser.add_argument("--model", help="folder, ARCH=FILE, ARCH:TAG or org/name of a CoCa (default: the demo's own)")
    parser.add_argument("--batch-size", type=positive, default=8, metavar="N", help="pictures at a time (default: 8)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--recursive", action="store_true", help="look into subfolders too")
    parser.add_argument("--workers", type=positive, default=2, metavar="N", help="threads that read (default: 2)")
    return parser.parse_args(argv)


def report(plan: "Plan", outcome: "Outcome", untriggered: list[str]) -> None:
    """Say where the captions are and what deserves a look."""
    print(f"{plan.table}: {outcome.done} new captions; proof-read it before training")
    notes = {
        "captions reach the length limit and may lack their end": outcome.cut,
        "rows were kept although their picture is gone": plan.gone(),
        "rows were kept that do not begin with the trigger": untriggered,
    }
    for note, names in notes.items():
        if names:
            print(f"{len(names)} {note}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}")
    if outcome.unreadable:
        print(f"{len(outcome.unreadable)} images could not be read:", file=sys.stderr)
        print(*outcome.unreadable.values(), sep="\n", file=sys.stderr)


def positive(text: str) -> int:
    """A whole number from 1 up."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def demo_captioner() -> str:
    """The captioner that comes with the repository."""
    if not DEMO_CAPTIONER.is_dir():
        raise PatinaError(
            f"{DEMO_CAPTIONER}: the demo's captioner is not there; name a model, for example "
            "--model coca_ViT-L-14:mscoco_finetuned_laion2b_s13b_b90k"
        )
    return str(DEMO_CAPTIONER)


if __name__ == "__main__":
    run_command(main)
