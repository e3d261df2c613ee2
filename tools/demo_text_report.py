"""Ask the demo's language model unseen questions before and after: python tools/demo_text_report.py --lora FOLDER"""

import argparse
import time
from pathlib import Path

from patina.errors import printable, run_command

DEMO = Path(__file__).resolve().parents[1] / "data" / "demo"


def main(argv: list[str] | None = None) -> int:
    """Print a few answers and the table. How good they are decides nothing: exit code 0."""
    args = parse(argv)
    # torch and transformers take seconds to import: not before the command line has been understood.
    from patina.watch.console import hush_libraries

    hush_libraries()  # before the imports at which they would speak
    import torch

    from patina.demo.answers import compare, examples, table
    from patina.text.load import load_model, load_tokenizer
    from patina.text.read import read_rows
    from patina.text.template import choose_template

    started = time.monotonic()
    rows = read_rows(args.questions)
    template = choose_template(load_tokenizer(str(args.base)))
    model = load_model(str(args.base), torch.float32, torch.device("cpu"))
    before, after = compare(model, args.lora, template, rows)
    print(f"{printable(examples(rows, before, after))}\n\n{table(before, after)}\n")
    print(f"{len(rows)} unseen questions, {time.monotonic() - started:.0f} s")
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; argparse explains itself and exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(description="Answers of the demo's language model before and after a LoRA.")
    parser.add_argument("--lora", type=Path, required=True, metavar="FOLDER", help="the trained adapter")
    parser.add_argument("--base", type=Path, default=DEMO / "lm", metavar="DIR", help="default: the demo's")
    parser.add_argument(
        *("--questions",),
        type=Path,
        default=DEMO / "text_train" / "test.jsonl",
        metavar="FILE",
        help="with the answers wanted (default: the demo's)",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_command(main)
