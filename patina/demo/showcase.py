"""Before and after: what a LoRA makes of the embedded base, as a sheet of pictures and in figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from diffusers import StableDiffusionPipeline
from PIL import Image

from patina.caption.coca import CocaCaptioner
from patina.data.wording import with_trigger
from patina.demo.quality import DRAWING, caption_all, named_right
from patina.demo.style import distance, ruler
from patina.demo.world import scenes
from patina.sampling import draw_grid
from patina.watch.sheet import contact_sheet

PROMPTS = (
    "a big green boat by the sea",
    "a small pink cat on a purple background",
    "two small red fish in the snow",
    "a big white robot in a green meadow",
    "two purple umbrellas in the city",
    "a small pink house in the desert",
    "a white balloon above a big blue mushroom, on a pink background",
    "a big green rocket on a yellow background",
)
"""Held-out captions, such as the base draws well: whoever looks wants to see what the LoRA changes."""
STRENGTHS = (0.0, 0.5, 1.0)
MEASURED, SEED = 32, 90201
"""How many held-out captions the figures are from, and their seed. Nobody chose among these."""
CLEAR, SLIGHT = 0.5, 0.15
"""Shares of the way to the style from which on it moved clearly, or at all."""


class Row(NamedTuple):
    """What was measured at one strength of the LoRA; 0 is the base itself."""

    strength: float
    to_style: float
    """Distance to the style's pictures (see `patina.demo.style.distance`)."""
    to_plain: float
    """Distance to pictures such as the base was taught."""
    kept: float
    """Share of prompts whose things and colours the captioner finds in the picture."""


def label(strength: float) -> str:
    """What tables and sheets call the pictures drawn at a strength."""
    return f"LoRA at {strength:.1f}" if strength else "base"


def before_after(pipe: StableDiffusionPipeline, lora: Path, trigger: str) -> Image.Image:
    """The sheet: a column a prompt, the base above and the LoRA's strengths below."""
    # The base is asked with the trigger too: nothing but the LoRA differs within a column.
    grid = draw_grid(pipe, lora, STRENGTHS, [with_trigger(trigger, text) for text in PROMPTS], **DRAWING)
    title = f"Before and after {lora.stem}"
    return contact_sheet(grid, [label(strength) for strength in STRENGTHS], PROMPTS, title)


def measure(
    pipe: StableDiffusionPipeline,
    lora: Path,
    trigger: str,
    captioner: CocaCaptioner,
    style: Sequence[Image.Image],
) -> list[Row]:
    """A row a strength, over captions that neither base nor LoRA was taught; `style` is what the LoRA was."""
    asked = scenes(MEASURED, SEED, held_out=True)
    grid = draw_grid(pipe, lora, STRENGTHS, [with_trigger(trigger, scene.caption()) for scene in asked], **DRAWING)
    rule, plain = ruler(pipe.vae)
    goal = rule.embed(style)

    def row(strength: float, drawn: Sequence[Image.Image]) -> Row:
        ours, read = rule.embed(drawn), caption_all(captioner, drawn)
        kept = sum(map(named_right, asked, read)) / MEASURED
        return Row(strength, distance(ours, goal), distance(ours, plain), kept)

    return [row(strength, drawn) for strength, drawn in zip(STRENGTHS, grid, strict=True)]


def table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    lines = [f"{'':14}{'to the style':>14}{'to plain':>12}{'content right':>16}"]
    lines += [f"{label(r.strength):14}{r.to_style:14.2f}{r.to_plain:12.2f}{r.kept:16.0%}" for r in rows]
    return "\n".join(lines)


def verdict(rows: Sequence[Row]) -> str:
    """One sentence on what happened between the first row, the base, and the last."""
    base, last = rows[0], rows[-1]
    way = 1 - last.to_style / max(base.to_style, 1e-6)
    moved = "clearly moved" if way >= CLEAR else "moved a little" if way >= SLIGHT else "did not move"
    return (
        f"The style {moved}: with the {label(last.strength)} the distance to its pictures went from "
        f"{base.to_style:.2f} to {last.to_style:.2f}, and {last.kept:.0%} of the pictures show what was asked "
        f"for, {base.kept:.0%} before."
    )
