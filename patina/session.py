"""One run's objects, taken up, carried through the loop, and written down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

from accelerate import Accelerator

from patina import checkpoint
from patina.config import Config
from patina.configfile import dump
from patina.engine.capture import CapturedStep
from patina.engine.precision import Precision
from patina.engine.step import EagerStep
from patina.files import write_text
from patina.loop import Plan, train
from patina.lora import inject
from patina.resume import compare, restore_scale, shared
from patina.stopping import FORWARDED, anywhere, stopping
from patina.task import Batch, Task
from patina.watch.console import say
from patina.watch.watcher import Watcher


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

    def batches(self, start: int) -> Iterator[Batch]:
        """The endless stream of batches from its `start`-th on."""
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
    step_once: EagerStep | CapturedStep
    plan: Plan

    def restore(self, path: Path) -> int:
        """Put the checkpoint's state back and return its step. Raises PatinaError where the runs differ."""
        saved = checkpoint.load(path)
        if untold := compare(path, saved.numbers["settings"], self._settings()):
            say(f"{path} is an earlier version's and does not say {', '.join(untold)}: taken to be as they are now")
        inject.load_state(self.task.adapted(), saved.lora)
        checkpoint.set_optimizer_state(self.step_once.optimizer, saved.optimizer, saved.numbers["optimizer"])
        restore_scale(self.step_once.scaler, saved.numbers["scaler"])
        return saved.step

    def announce(self, precision: Precision, start: int) -> None:
        """Say what will be trained, for how long, and what will be written."""
        config, plan = self.config, self.plan
        say(f"Patina {version('patina')}: {config.name}, {self.medium.what}, on {precision.where}")
        for line in self.medium.report():
            say(f"  {line}")
        for name, module in self.task.adapted().items():
            adapters = inject.adapters(module)
            weights = sum(weight.numel() for a in adapters.values() for weight in a.weights.values())
            rates = ", ".join(f"{rate:g}" for group, rate in plan.rates.items() if group.partition(" ")[0] == name)
            say(f"  trains    {name}: {len(adapters)} layers, {weights:,} weights, learning rate {rates}")
        batch = f"{config.batch_size} x {plan.accumulate}" if plan.accumulate > 1 else f"{config.batch_size}"
        passes = plan.steps * plan.accumulate / plan.batches_per_epoch
        say(f"  steps     {plan.steps} of batch {batch}: {passes:.1f} epochs" + (f", from {start} on" if start else ""))
        every = f", and every {config.save_steps} steps with a checkpoint" if config.save_steps else ""
        say(f"  writes    {self.medium.result}{every}")

    def train(self, team: Accelerator, start: int) -> Path:
        """Run the loop from `start` to the end and export; asked to stop before, save a checkpoint and return that."""
        config, plan = self.config, self.plan
        text = dump(config)
        write_text(config.output_dir / "config.yaml", text)
        exporter = self.medium.exporter()
        width = plan.accumulate * team.num_processes
        batches = self.medium.batches(start * width)
        alone = team.num_processes == 1
        with stopping(0.0 if alone else FORWARDED) as asked, self.medium.watcher(start, text) as watcher:

            def on_step(progress) -> None:
                watcher.note(progress)
                if self._saves(progress.step):
                    exporter.at_step(progress.step, progress.epoch)
                    self._save(progress.step, watcher)

            def pause(step: int) -> bool:
                return self._saves(step) or watcher.waits(step)

            def stop() -> bool:
                return anywhere(team, asked())

            reached = train(
                self.task, batches, self.step_once, plan, team, start=start, on_step=on_step, pause=pause, stop=stop
            )
            if not self._saves(reached):
                self._save(reached, watcher)
            if reached < plan.steps:
                return self._stopped(reached)
            path = exporter.final(plan.steps, plan.steps * width / plan.batches_per_epoch)
            self.medium.farewell(path, watcher)
        return path

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
        checkpoint.save(self._checkpoints, checkpoint.Checkpoint(step, state, tensors, kept))

    @property
    def _checkpoints(self) -> Path:
        return self.config.output_dir / "checkpoints"

    def _settings(self) -> Mapping[str, object]:
        return {
            **shared(self.config.model_dump(mode="json")),
            "lora_alpha": self.config.alpha,
            **self.medium.settings(),
        }
