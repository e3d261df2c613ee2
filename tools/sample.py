"""Draw what a LoRA makes of prompts: python tools/sample.py --base BASE --lora FILE --prompt TEXT --output sheet.png"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from patina.errors import PatinaError, run_command

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from PIL import Image

    Lines = list[tuple[str, list[Image.Image]]]


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    prompts = args.prompt + (read_prompts(args.prompts) if args.prompts else [])
    check(args, prompts)
    # torch and diffusers take seconds to import: not before the command line has been understood.
    from patina.files import replacing
    from patina.watch.sheet import contact_sheet

    lines = draw(load(args), args, prompts)
    names, pictures = [name for name, _ in lines], [row for _, row in lines]
    if args.layout == "rows":
        sheet = contact_sheet(pictures, names, prompts)
    else:
        sheet = contact_sheet(list(zip(*pictures, strict=True)), prompts, names)
    with replacing(args.output) as part:
        sheet.save(part, format="PNG")
    print(f"{args.output}: {len(prompts)} prompts x {', '.join(map(plain, names))}")
    if args.folder:
        print(f"{args.folder}: {save_singles(args.folder, lines)} pictures")
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; argparse explains itself and exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(description="Draw prompts with a base model and with LoRAs on it, on one sheet.")
    parser.add_argument(
        "--base", required=True, metavar="BASE", help="the base model: a single file or a diffusers folder"
    )
    parser.add_argument("--vae", metavar="VAE", help="another autoencoder for it: a single file or a diffusers folder")
    parser.add_argument("--prediction", choices=("auto", "epsilon", "v_prediction"), default="auto", help="of the base")
    parser.add_argument("--lora", type=Path, nargs="+", default=[], metavar="FILE", help="LoRA files to compare")
    parser.add_argument(
        "--strength", type=strength, nargs="+", metavar="X", help="strengths of each LoRA; 0 is the base (default: 0 1)"
    )
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="what to draw; repeatable")
    parser.add_argument("--prompts", type=Path, metavar="FILE.txt", help="more of them, one a line")
    parser.add_argument("--negative", default="", metavar="TEXT", help="what to stay away from")
    parser.add_argument("--output", type=Path, required=True, metavar="SHEET.png", help="the sheet to write")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="write the single pictures there too")
    parser.add_argument("--layout", choices=("rows", "columns"), default="rows", help="where strengths go")
    parser.add_argument("--seed", type=int, default=0, help="of the first prompt; the next has the next (default: 0)")
    parser.add_argument("--steps", type=positive, default=20, metavar="N", help="denoising steps (default: 20)")
    parser.add_argument("--guidance", type=float, default=7.0, metavar="G", help="1 or less: none (default: 7)")
    parser.add_argument("--size", type=size, metavar="WxH", help="pixels, multiples of 8 (default: the base's own)")
    parser.add_argument("--batch-size", type=positive, default=4, metavar="N", help="pictures at a time (default: 4)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    args = parser.parse_args(argv)
    args.strength = args.strength or ([0.0, 1.0] if args.lora else [0.0])
    return args


def check(args: argparse.Namespace, prompts: Sequence[str]) -> None:
    """Refuse what would fail or mislead after the model has been loaded."""
    if not prompts:
        raise PatinaError('no prompts; write --prompt "a red house", or --prompts FILE.txt with one a line')
    for lora in args.lora:
        if not lora.is_file():
            raise PatinaError(f"--lora {lora}: no such file")
    if not args.lora and any(args.strength):
        raise PatinaError("--strength: there is no LoRA to set the strength of; name one with --lora FILE")


def read_prompts(path: Path) -> list[str]:
    """The lines of a text file that are not empty."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise PatinaError(f"--prompts {path}: no such file") from error
    except UnicodeDecodeError as error:
        raise PatinaError(f"--prompts {path}: not UTF-8 text ({error}); save it as UTF-8") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def load(args: argparse.Namespace) -> "DiffusionPipeline":
    """The base on the device; half precision on a GPU."""
    import torch

    from patina.bases.find import find_base
    from patina.bases.load import load_pipeline
    from patina.caption.captioner import choose_device
    from patina.watch.console import hush_libraries

    hush_libraries()
    device, _ = choose_device(args.device)
    base = find_base(args.base, prediction=args.prediction)
    print(base.says)
    return load_pipeline(base, torch.float16 if device.type == "cuda" else torch.float32, device, args.vae)


def draw(pipe: "DiffusionPipeline", args: argparse.Namespace, prompts: Sequence[str]) -> "Lines":
    """Name and pictures of each line of the sheet: the base once, then every LoRA at its strengths."""
    from patina.sampling import draw_grid

    lines: Lines = []
    for lora in args.lora or [None]:
        strengths = [x for x in args.strength if x or not any(name == "base" for name, _ in lines)]
        rows = draw_grid(
            pipe,
            lora,
            strengths,
            prompts,
            seed=args.seed,
            negative_prompt=args.negative,
            steps=args.steps,
            guidance=args.guidance,
            size=args.size,
            batch=args.batch_size,
        )
        names = ["base" if lora is None or x == 0 else f"{lora.stem}\nstrength {x:g}" for x in strengths]
        lines += zip(names, rows, strict=True)
    return lines


def save_singles(folder: Path, lines: "Lines") -> int:
    """Write `01_base_01.png`, `02_my_style_strength_0.5_01.png` ... (line, name, prompt) and return how many."""
    folder.mkdir(parents=True, exist_ok=True)
    for line, (name, pictures) in enumerate(lines, start=1):
        for number, picture in enumerate(pictures, start=1):
            picture.save(folder / f"{line:02d}_{plain(name).replace(' ', '_')}_{number:02d}.png")
    return sum(len(pictures) for _, pictures in lines)


def plain(name: str) -> str:
    """A line's name on one line."""
    return name.replace("\n", " ")


def strength(text: str) -> float:
    """A finite number."""
    if not math.isfinite(number := float(text)):
        raise ValueError(text)
    return number


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
