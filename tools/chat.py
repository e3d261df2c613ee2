"""Talk to a language model and to what a LoRA made of it: python tools/chat.py --base FOLDER --lora FOLDER[:WEIGHT]"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from patina.errors import PatinaError, printable, run_command
from patina.lora.weighted import weighted

if TYPE_CHECKING:
    from patina.text.chat import Pair

END, RESET = ("exit", "quit"), "/reset"


def main(argv: list[str] | None = None, lines: Iterable[str] | None = None) -> int:
    """Answer each line, from the terminal or a pipe, by the base and by the tuned model, until `exit` or its end."""
    args = parse(argv)
    fill(args)
    # torch and transformers take seconds to import: not before the command line has been understood.
    from patina.watch.console import hush_libraries

    hush_libraries()  # before the imports at which they would speak
    from patina.text.chat import load_pair
    from patina.text.generate import Manner

    manner = Manner(args.max_new_tokens, args.temperature, args.top_p, args.seed)
    pair = load_pair(args.base, args.lora, args.template, args.device, manner)
    print(f"{args.base} with {', '.join(path.name for path, _ in args.lora)}; {RESET} forgets, exit ends")
    for line in typed() if lines is None else lines:
        if line.strip() in END:
            break
        if line.strip() == RESET:
            pair.forget()
            print("(forgotten)")
        elif line.strip():
            answer(pair, line.strip())
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; argparse explains itself and exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(description="Ask a language model and its LoRA the same questions, side by side.")
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="the config of a finished run: its base, LoRA and template")
    add("--base", metavar="BASE", help="the language model: a folder or a hub name")
    add(
        *("--lora",),
        type=weighted,
        nargs="+",
        action="extend",
        default=[],
        metavar="FOLDER[:WEIGHT]",
        help="adapter folders, all on at once; repeatable; a weight is 1 when left out",
    )
    add("--template", metavar="NAME", help="as text.template in a config (default: what the adapter's folder has)")
    add("--temperature", type=float, default=0.0, metavar="T", help="0: always the likeliest word (default)")
    add("--top-p", type=float, default=0.9, metavar="P", help="with a temperature: out of the likeliest (default: 0.9)")
    add("--max-new-tokens", type=int, default=200, metavar="N", help="longest answer (default: 200)")
    add("--seed", type=int, default=0, metavar="N", help="of the first answer (default: 0)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser.parse_args(argv)


def fill(args: argparse.Namespace) -> None:
    """Take from a config what the command line leaves out; refuse what is then still missing."""
    if args.config:
        from patina.configfile import load

        config = load(args.config)
        args.base = args.base or config.base_model
        args.lora = args.lora or [(config.output_dir / config.name, 1.0)]
        args.template = args.template or config.text.template
    if not args.base or not args.lora:
        raise PatinaError("nothing to talk to; write --config FILE, or --base FOLDER --lora FOLDER")
    for path, _ in args.lora:
        if not (path / "adapter_config.json").is_file():
            raise PatinaError(f"--lora {path}: holds no adapter_config.json; give the folder that a run wrote")
        if not (path / "adapter_model.safetensors").is_file():
            raise PatinaError(f"--lora {path}: holds no adapter_model.safetensors, and pickles are not opened")
        if '"SEQ_CLS"' in (path / "adapter_config.json").read_text(encoding="utf-8"):
            raise PatinaError(f"--lora {path}: tells labels and does not talk; load it with peft as docs/text.md shows")


def typed() -> Iterable[str]:
    """Lines from the terminal with a prompt before each, or from a pipe."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    while True:
        try:
            yield input("\nyou:   ")
        except EOFError:
            return


def answer(pair: "Pair", question: str) -> None:
    """Ask both and print what they say while they say it."""
    if not sys.stdin.isatty():
        print(f"\nyou:   {printable(question)}")
    for name, ask in (("base", pair.ask_base), ("tuned", pair.ask_tuned)):
        print(f"{name + ':':<7}", end="", flush=True)
        ask(question, lambda text: print(printable(text), end="", flush=True))
        print()


if __name__ == "__main__":
    run_command(main)
