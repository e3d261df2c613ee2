"""Everything that watches a run, in one place: bar, metrics file, TensorBoard and previews."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Self

from patina.progress import Progress
from patina.watch.board import Board
from patina.watch.console import bar
from patina.watch.metrics import MetricsFile
from patina.watch.previews import Previews
from patina.watch.thumbnail import save_thumbnail


class Watcher:
    """Writes `metrics.jsonl`, `logs/` and `samples/` into a run's folder; a context manager."""

    def __init__(self, folder: Path, steps: int, start: int, previews: Previews | None, config: str) -> None:
        """`config` is the run's config as YAML, to be read in TensorBoard."""
        self.folder, self.steps, self.start = folder, steps, start
        self.previews, self.config = previews, config
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self.metrics = self._open.enter_context(MetricsFile(self.folder / "metrics.jsonl", self.start))
        self.board = self._open.enter_context(Board(self.folder / "logs", self.start))
        if self.start == 0:
            self.board.text("config", self.config)
            self._draw(0)
        self.bar = self._open.enter_context(bar(self.steps, self.start))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def note(self, progress: Progress) -> None:
        """Take note of a step that was taken."""
        smoothed = self.metrics.add(progress)
        self.board.add(progress, smoothed)
        self.bar.advance(progress, smoothed)
        self._draw(progress.step)

    def thumbnail(self, lora: Path) -> None:
        """Save the newest preview of the first prompt beside the LoRA file; nothing where there are no previews."""
        image = self.previews.newest() if self.previews else None
        if image is not None:
            save_thumbnail(image, lora)

    def draws(self, step: int) -> bool:
        """Whether a preview is drawn after `step`."""
        return self.previews is not None and self.previews.due(step)

    def _draw(self, step: int) -> None:
        if self.previews and self.draws(step) and (sheet := self.previews.draw(step)):
            self.board.picture("previews", sheet, step)
