"""The same numbers, and the previews, for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Self

import numpy as np
from PIL import Image

from patina.progress import Progress
from patina.watch.metrics import samples_per_second


class Board:
    """Writes TensorBoard events into a folder; a context manager."""

    def __init__(self, folder: Path, start: int, unit: str = "images") -> None:
        """Go on after step `start`: TensorBoard then hides what an earlier run logged beyond it. Raises OSError.

        `unit` is what a step's samples are.
        """
        from torch.utils.tensorboard import SummaryWriter  # deferred: it takes a second to import

        # A run that starts anew draws its first preview as step 0.
        self._speed = f"speed/{unit.replace(' ', '_')}_per_second"
        self._writer = SummaryWriter(str(folder), purge_step=start + 1 if start else 0)

    def add(self, progress: Progress, smoothed: float, more: Mapping[str, float] = MappingProxyType({})) -> None:
        """Log one step, with the smoothed loss and what `more` is known of it."""
        numbers = {
            "loss/raw": progress.loss,
            "loss/smoothed": smoothed,
            "gradient_norm": progress.grad_norm,
            self._speed: samples_per_second(progress),
            **more,
        }
        numbers |= {f"learning_rate/{component}": rate for component, rate in progress.learning_rates.items()}
        for tag, number in numbers.items():
            self._writer.add_scalar(tag, number, progress.step)

    def picture(self, tag: str, image: Image.Image, step: int) -> None:
        """Log a picture."""
        self._writer.add_image(tag, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def text(self, tag: str, text: str, step: int = 0) -> None:
        """Log a text, shown as it is spaced: a config in YAML, for example."""
        # Four spaces make a block of code in Markdown, whatever the text holds; fences could be closed by it.
        self._writer.add_text(tag, "".join(f"    {line}\n" for line in text.splitlines()), step)

    def close(self) -> None:
        """Write out what is pending."""
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
