"""Look at, check and rework LoRA files: python tools/lora.py inspect FILE"""

import argparse
from collections.abc import Callable
from pathlib import Path

from patina.errors import PatinaError, run_command

FAMILIES = ("sd15", "sd2", "sdxl")
DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


def main(argv: list[str] | None = None) -> int:
    """Exit code 0: done. 1: `verify` found something wrong."""
    args = parse(argv)
    run: Callable[[argparse.Namespace], int] = args.run
    return run(args)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; argparse explains itself and exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(description="Look at, check and rework LoRA files of any program.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _reading(commands)
    return parser.parse_args(argv)


def _reading(commands) -> None:
    look = _command(commands, inspect, "what a file holds: algorithm, rank, layers, strength by block, metadata")
    look.add_argument("file", type=Path, metavar="FILE")
    check = _command(commands, verify, "whether a file is sound and fits; exit code 1 when not")
    check.add_argument("file", type=Path, metavar="FILE")
    check.add_argument("--family", choices=FAMILIES, help="what it must be for")
    check.add_argument("--base", type=Path, metavar="BASE", help="the checkpoint that it must fit")
    spell = _writing(commands, convert, "another spelling or other numbers; the metadata is kept")
    spell.add_argument("file", type=Path, metavar="IN")
    spell.add_argument("output", type=Path, metavar="OUT.safetensors")
    spell.add_argument(
        "--to", choices=("kohya", "diffusers", "peft"), default="kohya", help="whose names (default: kohya)"
    )
    spell.add_argument("--dtype", choices=DTYPES, help="(default: as in IN)")


def _command(commands, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(run.__name__.replace("_", "-"), help=text, description=f"{run.__doc__}")
    parser.set_defaults(run=run)
    return parser


def _writing(commands, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    parser = _command(commands, run, text)
    parser.add_argument("--force", action="store_true", help="write over what is there")
    return parser


def inspect(args: argparse.Namespace) -> int:
    """Show what a LoRA file holds."""
    from patina.lora.foreign import read_any
    from patina.lora.inspect import describe

    print(*describe(args.file, read_any(args.file)), sep="\n")
    return 0


def verify(args: argparse.Namespace) -> int:
    """Check that a LoRA file is sound and fits what it is for."""
    from patina.errors import printable
    from patina.lora.basefile import open_base
    from patina.lora.check import notes, problems
    from patina.lora.foreign import read_any
    from patina.lora.spelling import families

    base = open_base(args.base) if args.base else None
    wrong = problems(args.file, args.family, base)
    if wrong:
        print(*map(printable, wrong), sep="\n")
        return 1
    lora = read_any(args.file)
    fit = f", fits {args.base}" if base else ""
    print(f"{args.file}: sound, {len(lora.changes)} layers for {' or '.join(families(lora))}{fit}")
    print(*(f"  {printable(note)}" for note in notes(lora)), sep="\n", end="\n" if notes(lora) else "")
    return 0


def convert(args: argparse.Namespace) -> int:
    """Write a LoRA file in another spelling, or with other numbers."""
    free(args.output, args.force)
    from patina.lora.foreign import read_any
    from patina.lora.spelling import family_of, save

    lora = read_any(args.file)
    save(args.output, lora.changes, family_of(lora, args.file), lora.metadata, args.to, dtype(args.dtype))
    print(f"{args.output}: {len(lora.changes)} layers in {args.to}'s spelling{left_out(lora.unknown)}")
    return 0


def free(path: Path, force: bool) -> None:
    """Refuse to write over what is there."""
    if path.exists() and not force:
        raise PatinaError(f"{path} is there already; write --force to write over it, or choose another name")


def dtype(name: str | None):
    """`fp16` -> torch.float16; None stays None."""
    import torch

    return getattr(torch, DTYPES[name]) if name else None


def left_out(unknown: tuple[str, ...]) -> str:
    """The end of a sentence that owns up to what no layer was known for."""
    from patina.errors import printable

    return f"; {len(unknown)} unknown tensors left out, first {printable(unknown[0])}" if unknown else ""


if __name__ == "__main__":
    run_command(main)
