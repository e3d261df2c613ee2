"""Pictures drawn while a run trains: the same prompts and noise each time, so that only the training changes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from patina.files import replacing
from patina.sampling import Encode, generate
from patina.watch.console import say
from patina.watch.sheet import contact_sheet
from patina.watch.thinned import thinned

if TYPE_CHECKING:
    import torch
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

COLUMNS = 12
"""Steps that the sheet shows at most: the first, the last, and others evenly between them."""
NOTE = "parameters"
"""The PNG entry in which WebUIs keep how a picture was made."""


@dataclass
class Previews:
    """Draws `prompts` with the live model into `folder/step-000100/01.png` ..., and all steps so far on a sheet."""

    pipe: DiffusionPipeline
    prompts: Sequence[str]
    every: int
    """Steps between two previews; 0: none."""
    folder: Path
    seed: int = 0
    """Prompt number n is drawn from seed + n."""
    negative_prompt: str = ""
    steps: int = 20
    guidance: float = 7.0
    size: tuple[int, int] = (512, 512)
    """Width and height in pixels."""
    dtype: torch.dtype | None = None
    """What the denoiser computes in by autocast; None: its weights' own."""
    encode: Encode | None = None
    """Reads the prompts as the run's captions are read; None: as the pipeline does."""
    _failed: bool = field(default=False, init=False)

    def due(self, step: int) -> bool:
        """Whether to draw after `step`; 0 is before training, where B is zero and the live model is still the base."""
        return self.every > 0 and step % self.every == 0

    def draw(self, step: int) -> Image.Image | None:
        """Draw all prompts, write them and the sheet, and return the sheet.

        A preview is not worth a run: where memory or the disk is full this is said once, and None returned.
        """
        try:
            self._write(step, self._generated())
            sheet = self._sheet(step)
            _save(sheet, self.folder / "sheet.png")
        except (RuntimeError, OSError) as error:
            if not self._failed:
                say(f"step {step}: no preview ({' '.join(str(error).split())[:200]}); training goes on")
            self._failed = True
            return None
        return sheet

    def newest(self) -> Image.Image | None:
        """The latest picture of the first prompt; None before the first preview."""
        drawn = (self._read(step)[0] for step in reversed(_steps(self.folder)))
        return next((picture for picture in drawn if picture), None)  # the last preview may have failed

    def _generated(self) -> list[Image.Image]:
        return generate(
            self.pipe,
            self.prompts,
            self._seeds(),
            negative_prompt=self.negative_prompt,
            steps=self.steps,
            guidance=self.guidance,
            size=self.size,
            dtype=self.dtype,
            encode=self.encode,
        )

    def _write(self, step: int, pictures: Sequence[Image.Image]) -> None:
        for path, picture, note in zip(self._paths(step), pictures, self._notes(), strict=True):
            info = PngInfo()
            info.add_itxt(NOTE, note)
            _save(picture, path, info)

    def _sheet(self, step: int) -> Image.Image:
        """Read back from the disk: after a resume, earlier steps are only there."""
        steps = thinned([*(past for past in _steps(self.folder) if past < step), step], COLUMNS)
        columns = [self._read(past) for past in steps]
        heads = ["base" if past == 0 else f"step {past}" for past in steps]
        return contact_sheet(list(zip(*columns, strict=True)), self.prompts, heads)

    def _read(self, step: int) -> list[Image.Image | None]:
        """A step's pictures, None for those that an earlier run made of other prompts or settings."""
        return [_picture(path, note) for path, note in zip(self._paths(step), self._notes(), strict=True)]

    def _paths(self, step: int) -> list[Path]:
        folder = self.folder / f"step-{step:06d}"
        return [folder / f"{number:02d}.png" for number, _ in enumerate(self.prompts, start=1)]

    def _seeds(self) -> list[int]:
        return [self.seed + row for row, _ in enumerate(self.prompts)]

    def _notes(self) -> list[str]:
        """How each picture is made, in the words of A1111, whose PNG Info tab reads them."""
        negative = f"\nNegative prompt: {self.negative_prompt}" if self.negative_prompt else ""
        width, height = self.size
        return [
            f"{prompt}{negative}\nSteps: {self.steps}, CFG scale: {self.guidance:g}, Seed: {seed}, "
            f"Size: {width}x{height}"
            for prompt, seed in zip(self.prompts, self._seeds(), strict=True)
        ]


def _steps(folder: Path) -> list[int]:
    numbers = (path.name.removeprefix("step-") for path in folder.glob("step-*"))
    return sorted(int(number) for number in numbers if number.isdecimal())


def _picture(path: Path, note: str) -> Image.Image | None:
    try:
        with Image.open(path) as file:
            file.load()
            return file.copy() if file.info.get(NOTE) == note else None
    except (FileNotFoundError, UnidentifiedImageError):
        return None


def _save(picture: Image.Image, path: Path, info: PngInfo | None = None) -> None:
    with replacing(path) as part:
        picture.save(part, format="PNG", pnginfo=info)
