"""The same numbers, and the previews, for TensorBoard."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from patina.progress import Progress
from patina.watch.metrics import samples_per_second
from patina.watch.tail import Tail, Tailed


class Board(Tailed):
    """Writes TensorBoard events into a folder; a context manager.

    In place of torch's `SummaryWriter`, which keeps events back for minutes, so that a killed run would leave a gap,
    and whose thread ends with a stack trace where the disk is full.
    """

    def __init__(self, folder: Path, start: int, unit: str = "images") -> None:
        """Go on after step `start`: TensorBoard then hides what an earlier run logged beyond it.

        `unit` is what a step's samples are.
        """
        # deferred: they take a second to import
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

        self._speed = f"speed/{unit.replace(' ', '_')}_per_second"
        now = time.time_ns()
        name = f"events.out.tfevents.{now // 10**9:010d}.{now % 10**9:09d}"  # TensorBoard reads them in this order
        self._tail = Tail(folder / name)
        # A run that starts anew draws its first preview as step 0.
        begun = SessionLog(status=SessionLog.START)
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(step=start + 1 if start else 0, session_log=begun))

    def add(self, progress: Progress, smoothed: float, more: Mapping[str, float] = MappingProxyType({})) -> None:
        """Log one step, with the smoothed loss and what `more` is known of it."""
        from torch.utils.tensorboard.summary import scalar  # deferred: see above

        numbers = {
            "loss/raw": progress.loss,
            "loss/smoothed": smoothed,
            "gradient_norm": progress.grad_norm,
            self._speed: samples_per_second(progress),
            **more,
        }
        numbers |= {f"learning_rate/{component}": rate for component, rate in progress.learning_rates.items()}
        values = [value for tag, number in numbers.items() for value in scalar(tag, number).value]
        self._add(values, progress.step)

    def picture(self, tag: str, image: Image.Image, step: int) -> None:
        """Log a picture."""
        from torch.utils.tensorboard.summary import image as drawn  # deferred: see above

        self._add(drawn(tag, np.asarray(image.convert("RGB")), dataformats="HWC").value, step)

    def text(self, tag: str, text: str, step: int = 0) -> None:
        """Log a text, shown as it is spaced: a config in YAML, for example."""
        from torch.utils.tensorboard.summary import text as written  # deferred: see above

        # Four spaces make a block of code in Markdown, whatever the text holds; fences could be closed by it.
        self._add(written(tag, "".join(f"    {line}\n" for line in text.splitlines())).value, step)

    def _add(self, values: Sequence[Any], step: int) -> None:
        # deferred: see above; protobuf makes the names as it is imported
        from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        self._write(Event(step=step, summary=Summary(value=values)))

    def _write(self, event: Any) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter  # deferred: see above

        event.wall_time = time.time()
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        self._tail.add(record.getvalue())
