"""Look at, check and rework LoRA files: python tools/lora.py inspect FILE"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from patina.errors import PatinaError, run_command
from patina.lora.weighted import Weighted, weighted

if TYPE_CHECKING:
    from patina.lora.combine import Combined
    from patina.lora.foreign import AnyLora
    from patina.lora.svd import Keep

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
    _reworking(commands)
    _on_bases(commands)
    return parser.parse_args(argv)


def _reading(commands) -> None:
    look = _command(commands, inspect, "what a file holds: algorithm, rank, layers, strength by block, metadata")
    look.add_argument("file", type=Path, metavar="FILE")
    check = _command(commands, verify, "whether a file is sound and fits; exit code 1 when not")
    check.add_argument("file", type=Path, metavar="FILE")
    check.add_argument("--family", choices=FAMILIES, help="what it must be for")
    check.add_argument("--base", type=Path, metavar="BASE", help="the checkpoint that it must fit")


def _reworking(commands) -> None:
    spell = _writing(commands, convert, "another spelling or other numbers; the metadata is kept")
    spell.add_argument("file", type=Path, metavar="IN")
    spell.add_argument("output", type=Path, metavar="OUT.safetensors")
    spell.add_argument(
        "--to", choices=("kohya", "diffusers", "peft"), default="kohya", help="whose names (default: kohya)"
    )
    spell.add_argument("--dtype", choices=DTYPES, help="(default: as in IN)")
    join = _writing(commands, merge, "several into one, exactly or reduced to a rank")
    join.add_argument("files", type=weighted, nargs="+", metavar="FILE[:WEIGHT]", help="a weight is 1 when left out")
    join.add_argument("--output", type=Path, required=True, metavar="OUT.safetensors")
    join.add_argument("--rank", type=positive, metavar="N", help="reduce to this rank (default: exact, ranks add up)")
    small = _writing(commands, resize, "another rank, and what it costs; makes any algorithm a plain LoRA")
    small.add_argument("file", type=Path, metavar="IN")
    small.add_argument("output", type=Path, metavar="OUT.safetensors")
    _keep(small)
    for parser in (join, small):
        parser.add_argument("--base", type=Path, metavar="BASE", help="the checkpoint that a DoRA was trained on")
        parser.add_argument("--dtype", choices=DTYPES, default="fp16", help="(default: fp16)")


def _on_bases(commands) -> None:
    into = _writing(commands, bake, "LoRAs into a checkpoint, so that no LoRA is needed")
    into.add_argument("base", type=Path, metavar="BASE", help="a .safetensors file or a folder; a language model's too")
    into.add_argument("files", type=weighted, nargs="+", metavar="FILE[:WEIGHT]", help="or a language model's adapters")
    into.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="a file or a folder, as BASE is")
    into.add_argument("--template", metavar="NAME", help="as text.template in a config (default: the first adapter's)")
    words = "what an adapter was trained over, to tell how much that differs"
    into.add_argument("--trained-on", choices=("none", "8bit", "4bit", "fp8"), default="none", help=words)
    between = _writing(commands, extract, "the LoRA between two checkpoints")
    between.add_argument("base", type=Path, metavar="BASE")
    between.add_argument("tuned", type=Path, metavar="TUNED")
    between.add_argument("output", type=Path, metavar="OUT.safetensors")
    _keep(between)
    between.add_argument("--dtype", choices=DTYPES, default="fp16", help="(default: fp16)")
    mend = _writing(commands, convert_base, "a .ckpt pickle to .safetensors, without running what is in it")
    mend.add_argument("file", type=Path, metavar="IN.ckpt")
    mend.add_argument("output", type=Path, metavar="OUT.safetensors")


def _keep(parser: argparse.ArgumentParser) -> None:
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--rank", type=positive, metavar="N", help="largest rank of a layer")
    how.add_argument("--energy", type=share, metavar="X", help="share of the squared singular values to keep, 0 to 1")


def _command(commands, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(run.__name__.replace("_", "-"), help=text, description=f"{run.__doc__}")
    parser.set_defaults(run=run)
    return parser


def _writing(commands, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    parser = _command(commands, run, text)
    parser.add_argument("--force", action="store_true", help="write over what is there")

    def unless_there(args: argparse.Namespace) -> int:
        free(args.output, args.force)
        return run(args)

    parser.set_defaults(run=unless_there)
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
    from patina.lora.sound import read_sound
    from patina.lora.spelling import family_of, save

    lora = read_sound(args.file)
    save(args.output, lora.changes, family_of([args.file], [lora]), lora.metadata, args.to, dtype(args.dtype))
    print(f"{args.output}: {len(lora.changes)} layers in {args.to}'s spelling{left_out([lora])}")
    return 0


def merge(args: argparse.Namespace) -> int:
    """Join LoRA files into one, each at its weight: exactly, by adding up ranks, or reduced to a rank."""
    from patina.lora.svd import Keep

    origin = ", ".join(f"{path.stem} at {weight:g}" for path, weight in args.files)
    keep = Keep(rank=args.rank) if args.rank else None
    said = remade(args, args.files, keep, {"modelspec.merged_from": origin})
    print(f"{args.output}: {len(args.files)} LoRAs, {said}")
    return 0


def resize(args: argparse.Namespace) -> int:
    """Bring a LoRA of any algorithm to a rank by singular values, as a plain LoRA."""
    from patina.lora.svd import Keep

    said = remade(args, [Weighted(args.file, 1.0)], Keep(args.rank, args.energy), {})
    print(f"{args.output}: {said}")
    return 0


def bake(args: argparse.Namespace) -> int:
    """Add LoRAs, each at its weight, to a checkpoint's own weights."""
    if any((path / "adapter_config.json").is_file() for path, _ in args.files):
        return bake_text(args)
    from patina.lora.bake import bake
    from patina.lora.basefile import open_base
    from patina.lora.sound import read_sound

    base = open_base(args.base)
    loras = [read_sound(path) for path, _ in args.files]
    count = bake(base, list(zip(loras, [weight for _, weight in args.files], strict=True)), args.output)
    print(f"{args.output}: {args.base.name} with {len(loras)} LoRAs in {count} layers{left_out(loras)}")
    return 0


def bake_text(args: argparse.Namespace) -> int:
    """The same for adapter folders and a language model."""
    from patina.watch.console import hush_libraries

    hush_libraries()  # before the imports at which they would speak
    from patina.text.bake import bake

    print(args.output, bake(args.base, args.files, args.output, args.template, args.trained_on).report(), sep=": ")
    return 0


def extract(args: argparse.Namespace) -> int:
    """Write what lies between two checkpoints of one family as a LoRA."""
    from patina.lora.basefile import open_base
    from patina.lora.extract import extract
    from patina.lora.svd import Keep

    base = open_base(args.base)
    found = extract(base, open_base(args.tuned), Keep(args.rank, args.energy))
    said = write(args, found, base.family, {"ss_sd_model_name": args.base.name})
    print(f"{args.output}: {len(found.changes)} layers, {said}")
    return 0


def convert_base(args: argparse.Namespace) -> int:
    """Write a pickled checkpoint as safetensors; it is read as weights alone, so that nothing in it is run."""
    from patina.bases.convert import convert

    convert(args.file, args.output, force=args.force)
    print(f"{args.output}: written")
    return 0


def free(path: Path, force: bool) -> None:
    """Refuse to write over what is there."""
    if path.exists() and not force:
        raise PatinaError(f"{path} is there already; write --force to write over it, or choose another name")


def dtype(name: str | None):
    """`fp16` -> torch.float16; None stays None."""
    import torch

    return getattr(torch, DTYPES[name]) if name else None


def remade(args: argparse.Namespace, files: Sequence[Weighted], keep: Keep | None, more: Mapping[str, str]) -> str:
    """Write the sum of LoRA files as a plain LoRA, with the first one's metadata and `more`; what to tell of it."""
    from patina.lora.basefile import open_base
    from patina.lora.combine import combine
    from patina.lora.sound import read_sound
    from patina.lora.spelling import family_of

    paths, weights = zip(*files, strict=True)
    loras = [read_sound(path) for path in paths]
    base = open_base(args.base) if args.base else None
    family = family_of(paths, loras, base)
    found = combine(list(zip(loras, weights, strict=True)), family, keep, base)
    return write(args, found, family, {**loras[0].metadata, **more}) + left_out(loras)


def write(args: argparse.Namespace, found: Combined, family: str, metadata: Mapping[str, str]) -> str:
    """Write layers made anew under a header that says so; their ranks, and what they cost, to tell the user."""
    from patina.lora.combine import entries
    from patina.lora.spelling import save

    header = entries(metadata, args.output.stem, found.changes)
    save(args.output, found.changes, family, header, dtype=dtype(args.dtype))
    return f"{ranks(found.changes)}{cost(found.error)}"


def ranks(changes) -> str:
    """`rank 8`, or `ranks 2 to 8` where layers differ."""
    from patina.lora.delta import rank

    found = sorted({rank(change) or 0 for change in changes.values()})
    return f"rank {found[0]}" if len(found) == 1 else f"ranks {found[0]} to {found[-1]}"


def cost(error: float) -> str:
    """How far the result is from the exact one, relative to that; nothing where nothing was cut off."""
    return f", {100 * error:.2g} % off (relative Frobenius norm)" if error > 1e-6 else ", exact"


def positive(text: str) -> int:
    """A whole number from 1 up."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def share(text: str) -> float:
    """A number above 0, up to 1."""
    if not 0 < (number := float(text)) <= 1:
        raise ValueError(text)
    return number


def left_out(loras: Sequence[AnyLora]) -> str:
    """The end of a sentence that owns up to what no layer was known for."""
    from patina.errors import printable

    unknown = [key for lora in loras for key in lora.unknown]
    return f"; {len(unknown)} unknown tensors left out, first {printable(unknown[0])}" if unknown else ""


if __name__ == "__main__":
    run_command(main)
