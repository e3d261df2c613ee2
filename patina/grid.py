"""Grids of pictures: which prompt, seed and LoRA weights each place has, and drawing them together where they agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from patina.errors import PatinaError
from patina.promptline import PromptLine
from patina.sampling import carrying, generate, native_size

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from PIL import Image


class Cell(NamedTuple):
    """One picture."""

    prompt: str
    seed: int
    weights: tuple[float, ...]
    """One a LoRA file; where all are 0 it is the base itself."""
    negative: str
    steps: int
    guidance: float
    size: tuple[int, int]
    """Width and height in pixels."""


class Stack(NamedTuple):
    """LoRA files and their weights where a prompt does not say otherwise."""

    files: tuple[Path, ...]
    weights: tuple[float, ...]


def stacked(given: Sequence[tuple[Path, float]], folder: Path | None, lines: Sequence[PromptLine]) -> Stack:
    """The files given, which are on in every picture, and those of `folder` that prompts name, on where they do.

    Raises PatinaError for a name that is neither a given file's nor in `folder`.
    """
    files = [path for path, _ in given]
    known = {path.stem for path in files}
    for name in dict.fromkeys(name for line in lines for name in line.loras):
        if name in known:
            continue
        path = folder / f"{name}.safetensors" if folder and Path(name).name == name else None
        if path is None or not path.is_file():
            where = f"in {folder}, nor" if folder else "in a --lora-dir, for none is given, nor"
            raise PatinaError(f"<lora:{name}>: there is no such file {where} among --lora; check the name")
        files.append(path)
    return Stack(tuple(files), tuple(weight for _, weight in given) + (0.0,) * (len(files) - len(given)))


def cell(line: PromptLine, number: int, axes: Mapping[str, Any], stack: Stack, defaults: Cell) -> Cell:
    """The picture of prompt `number` (from 0) where the grid's axes have these values.

    An axis wins over the prompt's own option, that over `defaults`. Without either a prompt has the seed of `defaults`
    plus its number. The axis `weight` multiplies every LoRA's weight.
    """
    factor = axes.get("weight", 1.0)
    own = zip(stack.files, stack.weights, strict=True)
    return Cell(
        line.text,
        axes.get("seed", defaults.seed + number if line.seed is None else line.seed),
        tuple(factor * line.loras.get(path.stem, weight) for path, weight in own),
        defaults.negative if line.negative is None else line.negative,
        axes.get("steps", line.steps or defaults.steps),
        axes.get("guidance", defaults.guidance if line.guidance is None else line.guidance),
        (line.width or defaults.size[0], line.height or defaults.size[1]),
    )


def draw(pipe: DiffusionPipeline, files: Sequence[Path], cells: Sequence[Cell], batch: int) -> list[Image.Image]:
    """One picture a cell, in their order; equal cells are drawn once. `pipe` is left as it was."""
    alike: dict[tuple, list[Cell]] = {}
    for one in dict.fromkeys(cells):
        alike.setdefault(one[2:], []).append(one)
    made: dict[Cell, Image.Image] = {}
    with carrying(pipe, files) as weigh:
        for (weights, negative, steps, guidance, size), group in alike.items():
            weigh(weights)
            pictures = generate(
                pipe,
                [one.prompt for one in group],
                [one.seed for one in group],
                negative_prompt=negative,
                steps=steps,
                guidance=guidance,
                size=size,
                batch=batch,
            )
            made |= dict(zip(group, pictures, strict=True))
    return [made[one] for one in cells]


def defaults(
    pipe: DiffusionPipeline, seed: int, negative: str, steps: int, guidance: float, size: tuple[int, int] | None
) -> Cell:
    """What a cell is where neither axis nor prompt says otherwise."""
    return Cell("", seed, (), negative, steps, guidance, size or native_size(pipe))
