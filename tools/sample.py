"""Draw what LoRAs make of prompts: python tools/sample.py --base BASE --lora FILE:0.8 --prompt TEXT --out sheet.png"""

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from patina.errors import PatinaError, printable, run_command
from patina.lora.weighted import weighted
from patina.promptline import AXES, PromptLine, parse_line, read_lines

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from PIL import Image

SEEDS = 4
"""How many an axis `seed` without values draws, from --seed on."""


class Axis(NamedTuple):
    """One side of the sheet: what varies, its values, and the words for each."""

    name: str
    values: list[Any]
    words: list[str]


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    lines = [parse_line(text) for text in [*args.prompt, *(read_lines(args.prompts) if args.prompts else [])]]
    check(args, lines)
    rows, columns = axes(args, lines)
    # torch and diffusers take seconds to import: not before the command line has been understood.
    from patina.files import replacing
    from patina.grid import stacked
    from patina.watch.sheet import contact_sheet

    stack = stacked(args.lora, args.lora_dir, lines)
    if not stack.files and any(any(axis.values) for axis in (rows, columns) if axis.name == "weight"):
        raise PatinaError("--grid weight: there is no LoRA to give a weight; name one with --lora FILE")
    pictures = draw(load(args), args, lines, (rows, columns), stack)
    title = " + ".join(f"{path.stem} {weight:g}" for path, weight in args.lora)
    sheet = contact_sheet(pictures, rows.words, columns.words, title)
    with replacing(args.output) as part:
        sheet.save(part, format="PNG")
    print(f"{args.output}: {printable(' | '.join(rows.words))}, {len(columns.values)} pictures each")
    if args.folder:
        print(f"{args.folder}: {save_singles(args.folder, rows, pictures)} pictures")
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; argparse explains itself and exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(
        description="Draw prompts with a base model and LoRAs stacked on it, on one sheet."
    )
    add = parser.add_argument
    add("--base", required=True, metavar="BASE", help="the base model: a single file or a diffusers folder")
    add("--vae", metavar="VAE", help="another autoencoder for it: a single file or a diffusers folder")
    add("--prediction", choices=("auto", "epsilon", "v_prediction"), default="auto", help="of the base")
    add(
        *("--lora",),
        type=weighted,
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE[:WEIGHT]",
        help="LoRA files, all on at once; repeatable; a weight is 1 when left out",
    )
    add("--lora-dir", type=Path, metavar="DIR", help="where prompts' <lora:NAME:0.8> are found")
    add("--prompt", action="append", default=[], metavar="TEXT", help="what to draw; repeatable")
    add("--prompts", type=Path, metavar="FILE.txt", help="more, one a line; a line may have --n --w --h --s --l --d")
    add("--negative", default="", metavar="TEXT", help="what to stay away from")
    add("--output", "--out", type=Path, required=True, metavar="SHEET.png", help="the sheet to write")
    add("--folder", type=Path, metavar="DIR", help="write the single pictures there too")
    add(
        *("--grid",),
        nargs="+",
        metavar="AXIS",
        help="rows x columns of weight, seed, steps, guidance or prompt, as in: weight=0,0.5,1 x seed=1,2,3; "
        "weight multiplies all LoRAs', 0 is the base (default: weight=0,1 x prompt)",
    )
    add("--seed", type=int, default=0, help="of the first prompt; the next has the next (default: 0)")
    add("--steps", type=positive, default=20, metavar="N", help="denoising steps (default: 20)")
    add("--guidance", type=float, default=7.0, metavar="G", help="1 or less: none (default: 7)")
    add("--size", type=size, metavar="WxH", help="pixels, multiples of 8 (default: the base's own)")
    add("--batch-size", type=positive, default=4, metavar="N", help="pictures at a time (default: 4)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser.parse_args(argv)


def check(args: argparse.Namespace, lines: Sequence[PromptLine]) -> None:
    """Refuse what would fail or mislead after the model has been loaded."""
    if not lines:
        raise PatinaError('no prompts; write --prompt "a red house", or --prompts FILE.txt with one a line')
    for path, _ in args.lora:
        if not path.is_file():
            raise PatinaError(f"--lora {path}: no such file")
    names = [path.stem for path, _ in args.lora]
    if len(set(names)) < len(names):
        raise PatinaError("--lora: two of the files have one name, which prompts could not tell apart; rename one")


def axes(args: argparse.Namespace, lines: Sequence[PromptLine]) -> tuple[Axis, Axis]:
    """Rows and columns of the sheet; prompts are the columns where the grid does not say otherwise."""
    loras = bool(args.lora) or any(line.loras for line in lines)
    words = args.grid or ["weight=0,1" if loras else "weight=0"]
    found = [axis(text, args.seed, lines) for text in " ".join(words).replace(" x ", "\n").split("\n")]
    if len(found) == 1:
        other = "weight=1" if found[0].name == "prompt" and loras else "weight=0"
        found.insert(*((0, axis(other, 0, lines)) if found[0].name == "prompt" else (1, axis("prompt", 0, lines))))
    names = [one.name for one in found]
    if len(found) > 2 or len(set(names)) < 2:
        raise PatinaError(f"--grid {' x '.join(names)}: a sheet has two different axes, such as weight=0,1 x seed=1,2")
    if "prompt" not in names and len(lines) > 1:
        raise PatinaError(f"--grid {' x '.join(names)} shows one prompt, not {len(lines)}; make prompt one of the axes")
    return found[0], found[1]


def axis(text: str, seed: int, lines: Sequence[PromptLine]) -> Axis:
    """`weight=0,0.5,1`, `prompt`, or `seed` for the next four."""
    name, _, listed = text.strip().partition("=")
    if name == "prompt" and not listed:
        return Axis(name, list(range(len(lines))), [line.text for line in lines])
    if name == "seed" and not listed:
        listed = ",".join(str(seed + n) for n in range(SEEDS))
    try:
        values = [AXES[name](value) for value in listed.split(",")]
    except (KeyError, ValueError) as error:
        known = ", ".join(f"{axis}=1,2" for axis in AXES)
        raise PatinaError(f"--grid {text!r}: not an axis; write {known}, seed or prompt") from error
    zero = "base" if name == "weight" else f"{name} 0"
    return Axis(name, values, [f"{name} {value:g}" if value else zero for value in values])


def load(args: argparse.Namespace) -> "DiffusionPipeline":
    """The base on the device; half precision on a GPU."""
    import torch

    from patina.bases.find import find_base
    from patina.bases.load import load_pipeline
    from patina.engine.precision import choose_device
    from patina.watch.console import hush_libraries

    hush_libraries()
    device = choose_device(args.device)
    base = find_base(args.base, prediction=args.prediction)
    print(base.says)
    return load_pipeline(base, torch.float16 if device.type == "cuda" else torch.float32, device, args.vae)


def draw(
    pipe: "DiffusionPipeline", args: argparse.Namespace, lines: Sequence[PromptLine], sides: tuple[Axis, Axis], stack
) -> "list[list[Image.Image]]":
    """The pictures by row and column."""
    from patina import grid

    default = grid.defaults(pipe, args.seed, args.negative, args.steps, args.guidance, args.size)
    cells = []
    for pair in itertools.product(*(side.values for side in sides)):
        at = dict(zip((side.name for side in sides), pair, strict=True))
        number = at.pop("prompt", 0)
        cells.append(grid.cell(lines[number], number, at, stack, default))
    drawn = grid.draw(pipe, stack.files, cells, args.batch_size)
    width = len(sides[1].values)
    return [drawn[row * width : (row + 1) * width] for row in range(len(sides[0].values))]


def save_singles(folder: Path, rows: Axis, pictures: "list[list[Image.Image]]") -> int:
    """Write `01_base_01.png`, `02_weight_0.5_01.png` ... (row, its words, column) and return how many."""
    folder.mkdir(parents=True, exist_ok=True)
    for row, (words, line) in enumerate(zip(rows.words, pictures, strict=True), start=1):
        name = "" if rows.name == "prompt" else f"_{words.replace(' ', '_')}"
        for number, picture in enumerate(line, start=1):
            picture.save(folder / f"{row:02d}{name}_{number:02d}.png")
    return sum(map(len, pictures))


def positive(text: str) -> int:
    """A whole number from 1 up."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def size(text: str) -> tuple[int, int]:
    """`512x768` to (512, 768): width and height in pixels, multiples of 8."""
    width, height = (positive(part) for part in text.lower().split("x"))
    if width % 8 or height % 8:
        raise argparse.ArgumentTypeError(f"{text}: width and height must be multiples of 8")
    return width, height


if __name__ == "__main__":
    run_command(main)
