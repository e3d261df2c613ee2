"""What a run says in the terminal: lines, and one bar that stays below them."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Self, TextIO

from tqdm import tqdm

from patina.errors import printable, speaks
from patina.progress import Progress
from patina.watch.smoothed import Smoothed

FORMAT = "{percentage:3.0f}% |{bar:28}| {n_fmt}/{total_fmt}  {elapsed} < {remaining}{postfix}"
QUIET_SECONDS = 10.0
"""Least time between two lines where there is no terminal to draw a bar in."""
QUIET_LINES = 50
"""About as many lines a run may write there, however long it takes."""


def say(text: str) -> None:
    """Write a line to stdout, above the bar if there is one; what would steer the terminal is shown, not obeyed.

    Of a launcher's processes the first speaks for all. Nothing said is worth a run: where the output is a file on a
    full disk, or nobody reads it any more, it is lost.
    """
    if speaks():
        _write(printable(text), sys.stdout)


def farewell(path: Path, trigger_word: str | None, logs: Path) -> None:
    """Say where the LoRA is and how it is used."""
    words = f"<lora:{path.stem}:1>" + (f" {trigger_word}" if trigger_word else "")
    say(f"\nDone: {path}, read back and verified")
    say(f"  In a WebUI: copy it to models/Lora/ (ComfyUI: models/loras/) and write in the prompt: {words}")
    say(f"  The curves: tensorboard --logdir {logs}")


def text_farewell(path: Path, chat: str, logs: Path) -> None:
    """Say where a language model's LoRA is and how it is used; `chat` is the command that talks to it."""
    say(f"\nDone: {path}, read back and verified")
    say("  For peft, transformers, vLLM and LLaMA-Factory: give them this folder as the adapter of the same base")
    say(f"  Ask it something, beside the base: {chat}")
    say(f"  The curves: tensorboard --logdir {logs}")


def classifier_farewell(path: Path, base: str, logs: Path) -> None:
    """Say where a classifier's adapter folder is and how it is used."""
    say(f"\nDone: {path}, read back and verified")
    say(f"  For peft and transformers: the adapter of {base}, its head within; classifier.json in it names the labels")
    say(f"  The curves, and which labels are taken for which: tensorboard --logdir {logs}")


def bar(total: int, start: int, unit: str = "images") -> Bar:
    """A progress bar of `total` steps of which `start` are done; a context manager. `unit`: what samples are."""
    return Bar(total, start, unit)


class Bar:
    """On a terminal a bar, elsewhere a line now and then; both to stderr."""

    def __init__(self, total: int, start: int, unit: str) -> None:
        self.total, self.start, self.unit = total, start, unit
        self._quiet = not sys.stderr.isatty()
        self._pace = Smoothed(0.9)
        self._began = time.monotonic()
        self._last = (self._began, start)
        self._tqdm = tqdm(
            total=total,
            initial=start,
            file=sys.stderr,
            disable=self._quiet,
            bar_format=FORMAT,
            dynamic_ncols=True,
            smoothing=0.05,
        )

    def advance(self, progress: Progress, loss: float) -> None:
        """Show the step, the (smoothed) loss given, and the speed."""
        pace = self._pace.add(progress.seconds)
        facts = f"loss {loss:.4f}   {_speed(pace, progress.samples, self.unit)}"
        if self._quiet:
            self._tell(progress.step, facts)
        else:
            self._tqdm.set_postfix_str(f"  {facts}", refresh=False)
            self._tqdm.update()

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._tqdm.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tell(self, step: int, facts: str) -> None:
        now, (then, told) = time.monotonic(), self._last
        early = now - then < QUIET_SECONDS or step - told < self.total / QUIET_LINES
        if early and step < self.total:
            return
        self._last = (now, step)
        left = (now - self._began) / (step - self.start) * (self.total - step)
        _write(f"step {step}/{self.total}   {facts}   {tqdm.format_interval(left)} left", sys.stderr)


def _write(line: str, file: TextIO) -> None:
    with suppress(OSError):
        tqdm.write(line, file=file)
        file.flush()


def _speed(seconds: float, samples: int, unit: str) -> str:
    """Samples a second; where that is below one, the seconds that a step takes."""
    if seconds <= 0 or samples >= seconds:
        return f"{samples / max(seconds, 1e-9):.1f} {unit}/s"
    return f"{seconds:.1f} s/step"


def hush_libraries() -> None:
    """Keep the libraries' own bars and remarks out of the terminal; their warnings and errors stay."""
    # bitsandbytes remarks at import that an optional kernel package is missing; nothing here uses it. diffusers, whose
    # import may bring it along, therefore comes after.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # peft asks for a property that transformers is renaming, and remarks on tied weights
    warnings.filterwarnings("ignore", message=r"`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    warnings.filterwarnings("ignore", message=r"Model has `tie_word_embeddings=True`", category=UserWarning)
    from diffusers.utils import logging as diffusers_logging  # deferred: slow to import
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
