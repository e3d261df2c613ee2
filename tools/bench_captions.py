"""How fast the labeller captions, beside each library's loop: python tools/bench_captions.py [--backend NAME ...]"""

import argparse
import os
from dataclasses import asdict
from pathlib import Path

from patina.errors import run_command

NAMES = ("coca", "blip", "blip2", "florence2", "vlm", "wd")
HEAD = ("backend", "parameters", "Patina images/s", "plain images/s", "times", "reading alone", "GPU GB")


def main(argv: list[str] | None = None) -> int:
    """Print the table in Markdown, each row as soon as it is measured."""
    args = parse(argv)
    # slow to import: not before the command line has been understood
    from patina.bench.captions import TOKENS, measure
    from patina.bench.places import write_json
    from patina.caption.captioner import choose_device

    device, dtype = choose_device(args.device)
    print(f"{device}, {dtype}; {args.pictures} pictures, {TOKENS} tokens each, {args.workers} threads read\n")
    print(f"| {' | '.join(HEAD)} |\n|---|{'---:|' * (len(HEAD) - 1)}", flush=True)
    rows = []
    places = args.backend or list(NAMES)
    for row in measure(places, args.work.resolve(), device, args.pictures, args.workers, narrow=args.tiny):
        memory = f"{row.gpu_bytes / 2**30:.1f}" if row.gpu_bytes else ""
        numbers = (f"{row.patina:.2f}", f"{row.plain:.2f}", f"{row.patina / row.plain:.2f}", f"{row.reading:.1f}")
        print(f"| {' | '.join((row.backend, f'{row.parameters / 1e6:,.0f} M', *numbers, memory))} |", flush=True)
        rows.append(row)
    if args.output:
        write_json(args.output, [asdict(row) for row in rows])
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; argparse explains itself and exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(description="Time captioning on models with random weights in published shapes.")
    parser.add_argument("--backend", action="append", choices=NAMES, help="only this one; may be repeated")
    parser.add_argument("--pictures", type=int, default=128, metavar="N", help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=min(os.cpu_count() or 1, 8), metavar="N", help="reading threads")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--tiny", action="store_true", help="models of one layer, for trying out")
    parser.add_argument("--work", type=Path, default=Path("output/bench/captions"), metavar="DIR")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="the figures as JSON")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_command(main)
