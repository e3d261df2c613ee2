"""How fast a language model is trained, beside transformers' Trainer: python tools/bench_text.py [--case NAME ...]"""

import argparse
from pathlib import Path
from typing import Any

from patina.errors import run_command

NAMES = ("lora", "lora-fp8", "lora-checkpointing", "qlora-checkpointing")
HEAD = ("case", "", "tokens/s", "ms a step", "of the chip", "GPU GB", "start s", "times")


def main(argv: list[str] | None = None) -> int:
    """Print the table in Markdown, each row as soon as it is measured; exit code 1 where a job failed."""
    args = parse(argv)
    # slow to import: not before the command line has been understood
    from patina.bench import texts
    from patina.engine.precision import choose_device

    device = choose_device(args.device)
    cases = [case for case in texts.CASES if not args.case or case.name in args.case]
    shape = "a toy" if args.tiny else "Qwen2.5-7B's shape"
    print(f"{device}; {shape}, random weights, bf16, rows of {args.length} tokens\n")
    print(f"| {' | '.join(HEAD)} |\n|---|---|{'---:|' * (len(HEAD) - 2)}", flush=True)
    rows = []
    for row in texts.measure(cases, args.work.resolve(), device, narrow=args.tiny, length=args.length):
        print(f"| {' | '.join(cells(row))} |", flush=True)
        rows.append(row)
    if args.output:
        texts.save(rows, args.output)
    return 1 if any(row.error for row in rows) else 0


def cells(row: Any) -> list[str]:
    """A row's texts in the order of HEAD."""
    if row.error:
        return [row.case, row.side, row.error, *[""] * (len(HEAD) - 3)]
    numbers = (f"{row.tokens_per_second:,.0f}", f"{row.milliseconds:.1f}", f"{row.share:.1%}")
    memory, times = f"{row.gpu_bytes / 2**30:.1f}", f"{row.times:.2f}" if row.times else ""
    return [row.case, row.side, *numbers, memory, f"{row.start_seconds:.1f}", times]


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; argparse explains itself and exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(description="Time Patina and transformers' Trainer on the same packed rows.")
    parser.add_argument("--case", action="append", choices=NAMES, help="only this one; may be repeated")
    parser.add_argument("--length", type=int, default=2048, metavar="N", help="tokens of a row (default: %(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--tiny", action="store_true", help="a toy, for trying out")
    parser.add_argument("--work", type=Path, default=Path("output/bench/text"), metavar="DIR")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="the figures as JSON")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_command(main)
