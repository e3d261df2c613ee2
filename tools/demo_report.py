"""Show and measure what a LoRA did to the demo's base: python tools/demo_report.py --lora FILE --output FILE.png"""

import argparse
import time
from pathlib import Path

from patina.errors import run_command

DEMO = Path(__file__).resolve().parents[1] / "data" / "demo"


def main(argv: list[str] | None = None) -> int:
    """Write the sheet, print the table and a sentence. How far the style moved decides nothing: exit code 0."""
    args = parse(argv)
    # torch and open_clip take seconds to import: not before the command line has been understood.
    from patina.watch.console import hush_libraries

    hush_libraries()  # before the imports at which they would speak
    from patina.data.images import find_images, open_image
    from patina.demo import quality, showcase
    from patina.engine.precision import choose_device
    from patina.files import replacing
    from patina.lora.file import read

    started = time.monotonic()
    metadata = read(args.lora).metadata
    trigger = metadata.get("modelspec.trigger_phrase", "") if args.trigger is None else args.trigger
    style = [open_image(path) for path in find_images(args.style)]
    device = choose_device("auto")
    pipe = quality.load_base(args.base, device)
    captioner = quality.load_captioner(DEMO / "captioner", device)
    sheet = showcase.before_after(pipe, args.lora, trigger)
    with replacing(args.output) as part:
        sheet.save(part, "PNG", optimize=True)
    print(f"{args.output}: {len(showcase.PROMPTS)} prompts of no training picture, trigger word {trigger or 'none'}\n")
    rows = showcase.measure(pipe, args.lora, trigger, captioner, style)
    print(f"{showcase.table(rows)}\n\n{showcase.verdict(rows)} ({time.monotonic() - started:.0f} s)")
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; argparse explains itself and exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(description="A sheet of the base before and after a LoRA, and how far it moved.")
    parser.add_argument("--lora", type=Path, required=True, metavar="FILE", help="the trained .safetensors file")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.png", help="the sheet")
    parser.add_argument("--base", type=Path, default=DEMO / "base", metavar="DIR", help="default: the demo's")
    parser.add_argument(
        "--style", type=Path, default=DEMO / "style_train", metavar="DIR", help="what it was trained on"
    )
    parser.add_argument("--trigger", metavar="WORD", help="in front of every prompt (default: the one the file names)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_command(main)
