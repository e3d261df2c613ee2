"""Everything that watches a run, in one place: bar, metrics file, TensorBoard, previews and answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from PIL import Image

from patina.errors import PatinaError
from patina.progress import Progress
from patina.watch.answers import Answers
from patina.watch.board import Board
from patina.watch.console import bar, say
from patina.watch.metrics import MetricsFile
from patina.watch.previews import Previews
from patina.watch.thumbnail import save_thumbnail

Measure = Callable[[Progress], Mapping[str, float]]
VALIDATION = "validation/"
"""What the names of curves begin with that are measured now and then, on what is not trained on."""


class Watcher:
    """Writes `metrics.jsonl`, `logs/` and `samples/` into a run's folder; a context manager."""

    def __init__(
        self,
        folder: Path,
        steps: int,
        start: int,
        previews: Previews | None,
        config: str,
        unit: str = "images",
        measure: Measure | None = None,
        due: Callable[[int], bool] = lambda step: True,
        halts: Callable[[int], bool] | None = None,
        answers: Answers | None = None,
        figures: Callable[[], Mapping[str, Image.Image]] = dict,
    ) -> None:
        """`config` is the run's config as YAML, to be read in TensorBoard; `unit`, what a step's samples are;
        `measure`, what else is known of the step just taken, by the names of its curves; `due`, after which steps,
        and `halts`, after which of these the weights must not move on before (None: all);
        `figures`, pictures of what was just measured, by their names in TensorBoard."""
        self.folder, self.steps, self.start = folder, steps, start
        self.previews, self.config = previews, config
        self.unit, self.measure, self.due = unit, measure, due
        self.halts = halts or due
        self.answers = answers
        self.figures = figures
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self.metrics = self._open.enter_context(MetricsFile(self.folder / "metrics.jsonl", self.start, self.unit))
        self.board = self._open.enter_context(Board(self.folder / "logs", self.start, self.unit))
        if self.start == 0:
            self.board.text("config", self.config)
            self._draw(0)
        if self.answers:
            self._open.enter_context(self.answers.begin(self.start, self.board))
        self.bar = self._open.enter_context(bar(self.steps, self.start, self.unit))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def note(self, progress: Progress) -> Mapping[str, float]:
        """Take note of a step that was taken; returns what was measured after it."""
        more = self.measure(progress) if self.measure and self.due(progress.step) else {}
        smoothed = self.metrics.add(progress, more)
        self.board.add(progress, smoothed, more)
        self.bar.advance(progress, smoothed)
        if measured := [f"{name.partition('/')[2]} {more[name]:.4f}" for name in more if name.startswith(VALIDATION)]:
            say(f"step {progress.step}: validation {', '.join(measured).replace('_', ' ')}")
        for name, figure in self.figures().items():
            self.board.picture(name, figure, progress.step)
        self._draw(progress.step)
        return more

    def settle(self) -> None:
        """Have the disk hold what was noted, so that a checkpoint is never ahead of the curves."""
        self.metrics.settle()
        self.board.settle()
        if self.answers:
            self.answers.settle()

    def thumbnail(self, lora: Path) -> None:
        """Save the newest preview of the first prompt beside the LoRA file; nothing where there are no previews."""
        try:
            image = self.previews.newest() if self.previews else None
            if image is not None:
                save_thumbnail(image, lora)
        except (OSError, PatinaError) as error:
            say(f"no picture was put beside {lora} ({' '.join(str(error).split())[:200]})")

    def waits(self, step: int) -> bool:
        """Whether the next step must wait for what is drawn or measured after `step`."""
        return (self.measure is not None and self.halts(step)) or self._draws(step)

    def _draws(self, step: int) -> bool:
        return any(shown is not None and shown.due(step) for shown in (self.previews, self.answers))

    def _draw(self, step: int) -> None:
        if self.previews and self.previews.due(step) and (sheet := self.previews.draw(step)):
            self.board.picture("previews", sheet, step)
        if self.answers and step and self.answers.due(step):
            self.answers.draw(step)
