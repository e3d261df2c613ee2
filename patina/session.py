"""One run's objects, taken up, carried through the loop, and written down."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from patina import checkpoint, forecast
from patina.best import LOSS, Best
from patina.config import Config
from patina.configfile import dump
from patina.engine.ladder import Ladder
from patina.engine.precision import Precision
from patina.engine.spill import Spill
from patina.files import write_text
from patina.lock import FIRST, require_kept
from patina.loop import Plan, train
from patina.lora import inject
from patina.progress import Progress
from patina.resume import compare, restore_scale, shared
from patina.stopping import FORWARDED, Agreement, stopping
from patina.task import Batch, Task
from patina.watch.console import say
from patina.watch.watcher import Watcher

Run = Callable[[Callable[[Progress], None], Callable[[int], bool]], int]
"""Takes the steps: `on_step`, `pause` -> the step reached; see `patina.loop.train`."""


class Exporter(Protocol):
    """Writes the live LoRA for other programs, and reads it back before it is called done."""

    def at_step(self, step: int, epoch: float) -> Path: ...

    def final(self, step: int, epoch: float) -> Path: ...


class Medium(Protocol):
    """What pictures and texts do each in their own way: `patina.pictures`, `patina.conversations`."""

    @property
    def what(self) -> str:
        """What is trained, for the user: `a LoRA for sd15`."""
        ...

    @property
    def result(self) -> Path:
        """What the run will have written at its end."""
        ...

    def report(self) -> Sequence[str]:
        """What a user should know of the training set."""
        ...

    def settings(self) -> Mapping[str, object]:
        """What a checkpoint fixes of the data: with another value the rest of the run would see other data."""
        ...

    def advice(self) -> Sequence[str]:
        """What the training set asks for, as lines of a config with their reasons."""
        ...

    def batches(self, start: int) -> Iterator[Batch]:
        """The endless stream of batches from its `start`-th on."""
        ...

    def heaviest(self) -> Batch:
        """A batch that takes as much memory as any."""
        ...

    def watcher(self, start: int, config: str) -> Watcher:
        """What shows the run from step `start` on; `config` is its config as YAML."""
        ...

    def exporter(self) -> Exporter: ...

    def farewell(self, path: Path, watcher: Watcher) -> None:
        """Say where the LoRA is and how it is used, and write what is shown beside it."""
        ...


@dataclass(frozen=True)
class Session:
    """One run's objects, and what is written of it."""

    config: Config
    medium: Medium
    task: Task
    step_once: Ladder
    plan: Plan
    team: Accelerator
    best: Best = field(default_factory=Best)
    """Kept where `validation.patience` is given."""

    def restore(self, path: Path) -> int:
        """Put the checkpoint's state back and return its step. Raises PatinaError where the runs differ."""
        saved = checkpoint.load(path)
        if untold := compare(path, saved.numbers["settings"], self._settings()):
            say(f"{path} is an earlier version's and does not say {', '.join(untold)}: taken to be as they are now")
        self._restore_average(saved)
        inject.load_state(self.task.adapted(), saved.lora)
        checkpoint.set_optimizer_state(self.step_once.optimizer, saved.optimizer, saved.numbers["optimizer"])
        restore_scale(self.step_once.scaler, saved.numbers["scaler"])
        if self._patience:
            self.best.restore(saved.numbers.get("best", {}), saved.best)
        return saved.step

    def announce(self, precision: Precision, start: int) -> None:
        """Say what will be trained, for how long, and what will be written."""
        config, plan = self.config, self.plan
        say(f"Patina {version('patina')}: {config.name}, {self.medium.what}, on {precision.where}")
        for line in self.medium.report():
            say(f"  {line}")
        for name, module in self.task.adapted().items():
            layers = inject.trained(module)
            weights = sum(weight.numel() for parts in layers.values() for weight in parts.values())
            rates = ", ".join(f"{rate:g}" for group, rate in plan.rates.items() if group.partition(" ")[0] == name)
            say(f"  trains    {name}: {len(layers)} layers, {weights:,} weights, learning rate {rates}")
        batch = f"{config.batch_size} x {plan.accumulate}" if plan.accumulate > 1 else f"{config.batch_size}"
        batch += f" on each of {self.team.num_processes} processes" if self.team.num_processes > 1 else ""
        passes = plan.steps * self._width / plan.batches_per_epoch
        say(f"  steps     {plan.steps} of batch {batch}: {passes:.1f} epochs" + (f", from {start} on" if start else ""))
        every = f", and every {config.save_steps} steps with a checkpoint" if config.save_steps else ""
        say(f"  writes    {self.medium.result}{every}")

    def foresee(self, start: int) -> None:
        """Measure a few steps, which the weights do not notice, and say what the run would take from `start` on."""
        measured = forecast.measure(self.step_once, self.medium.heaviest(), self.plan)
        for line in forecast.lines(measured, self.plan.steps - start):
            say(f"  {line}")
        if advice := self.medium.advice():
            say("  advice    of this set, for the config:")
            for line in advice:
                say(line)
        say("nothing was trained and nothing written; leave out --plan to begin")

    def train(self, start: int) -> Path:
        """Run the loop from `start` to the end and export; asked to stop before, save a checkpoint and return that.

        Of a team's processes the main one writes; the others return where it does.
        """
        if self.step_once.device.type == "cuda":
            torch.set_num_threads(1)  # what a step draws on the host is small: to wake threads for it costs more
            self.step_once.look_ahead(self.medium.heaviest())
        batches = self.medium.batches(start * self._width)
        agreed = Agreement(self.team)
        with stopping(0.0 if self.team.num_processes == 1 else FORWARDED) as asked:

            def run(on_step: Callable[[Progress], None], pause: Callable[[int], bool]) -> int:
                if self._over:  # as the checkpoint says, which every process has read
                    return start
                return train(
                    self.task,
                    batches,
                    self.step_once,
                    self.plan,
                    self.team,
                    start=start,
                    on_step=on_step,
                    pause=pause,
                    stop=lambda: agreed(asked() or self._over),
                )

            if self.team.is_main_process:
                return self._watched(run, start)
            run(lambda progress: None, lambda step: False)
            return self.config.output_dir

    def _watched(self, run: Run, start: int) -> Path:
        """Train with all that is shown and saved."""
        plan, text = self.plan, dump(self.config)
        write_text(self.config.output_dir / FIRST, text)
        exporter = self.medium.exporter()
        on_gpu, spill = self.step_once.device.type == "cuda", Spill(torch.cuda.mem_get_info, say)
        with self.medium.watcher(start, text) as watcher:

            def on_step(progress: Progress) -> None:
                saves = self._saves(progress.step)
                with self._shown() if saves or watcher.waits(progress.step) else nullcontext():
                    found = watcher.note(progress)
                    if self._patience and LOSS in found:
                        self.best.note(progress.step, found[LOSS], inject.state(self.task.adapted()))
                    if saves:
                        require_kept(self.config.output_dir)
                        exporter.at_step(progress.step, progress.epoch)
                if on_gpu:
                    spill.note(progress.seconds)
                if saves:
                    self._save(progress.step, watcher)

            reached = run(on_step, lambda step: self._saves(step) or watcher.waits(step))
            require_kept(self.config.output_dir)
            if not self._saves(reached):
                self._save(reached, watcher)
            if reached < plan.steps and not self._over:
                return self._stopped(reached)
            step = self._take_best(reached)
            with nullcontext() if self.best.step else self._shown():
                path = exporter.final(step, step * self._width / plan.batches_per_epoch)
            self.medium.farewell(path, watcher)
        return path

    def _take_best(self, reached: int) -> int:
        """Put the best state in place of the last, where one was looked for; returns the step that it is of."""
        best = self.best
        if not best.step:
            return reached
        inject.load_state(self.task.adapted(), best.state)
        early = f"stopped after step {reached} of {self.plan.steps}: " if reached < self.plan.steps else ""
        none = f"; {best.since} measurements since were no better" if best.since else ""
        say(f"{early}the validation loss was lowest at step {best.step}, {best.loss:.4f}, and that is saved{none}")
        return best.step

    def _stopped(self, step: int) -> Path:
        path = checkpoint.place(self._checkpoints, step)
        word = "auto" if checkpoint.newest(self._checkpoints) == path else path  # it may have gone on from an older one
        say(f"stopped after step {step} of {self.plan.steps}, saved in {path}; go on with resume={word}")
        return path

    def _saves(self, step: int) -> bool:
        every = self.config.save_steps
        return every > 0 and step % every == 0 and step < self.plan.steps

    def _save(self, step: int, watcher: Watcher) -> None:
        watcher.settle()
        tensors, numbers = checkpoint.optimizer_state(self.step_once.optimizer)
        state = inject.state(self.task.adapted())
        kept = {"optimizer": numbers, "scaler": self.step_once.scaler.state_dict(), "settings": self._settings()}
        if self.best.step:
            kept["best"] = self.best.numbers()
        mean = self._averaged_state(kept)
        checkpoint.save(self._checkpoints, checkpoint.Checkpoint(step, state, tensors, kept, self.best.state, mean))
        if self.config.keep_checkpoints:
            checkpoint.thin(self._checkpoints, step, self.config.keep_checkpoints)

    def _shown(self) -> AbstractContextManager[None]:
        """Inside, the live weights are those that others get to see: the average where one is kept."""
        average = self.step_once.eager.average
        return average.in_place() if average else nullcontext()

    def _averaged_state(self, kept: dict[str, Any]) -> Mapping[str, Tensor]:
        """The average's state for a checkpoint, among whose numbers `kept` it notes how many steps it is of."""
        average = self.step_once.eager.average
        if average is None:
            return {}
        kept["average"] = average.steps
        with average.in_place():
            return {key: part.clone() for key, part in inject.state(self.task.adapted()).items()}

    def _restore_average(self, saved: checkpoint.Checkpoint) -> None:
        """Before the weights themselves are; a checkpoint without one, an earlier version's, lets it begin there."""
        if average := self.step_once.eager.average:
            inject.load_state(self.task.adapted(), saved.average or saved.lora)
            average.begin(saved.numbers.get("average", 0))

    @property
    def _patience(self) -> int | None:
        return self.config.validation.patience

    @property
    def _over(self) -> bool:
        return self.best.over(self._patience)

    @property
    def _width(self) -> int:
        """Batches in a step, over all processes."""
        return self.plan.accumulate * self.team.num_processes

    @property
    def _checkpoints(self) -> Path:
        return self.config.output_dir / "checkpoints"

    def _settings(self) -> Mapping[str, object]:
        return {
            **shared(self.config.model_dump(mode="json")),
            "lora_alpha": self.config.alpha,
            "gradient_accumulation_steps": self._width,  # as one process would have to be told
            **self.medium.settings(),
        }
