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
from patina.engine.precision import Precision
from patina.engine.step import EagerStep
from patina.errors import PatinaError
from patina.files import write_text
from patina.loop import Plan, train
from patina.lora import inject
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
    step_once: EagerStep
    plan: Plan

    def restore(self, path: Path) -> int:
        """Put the checkpoint's state back and return its step. Raises PatinaError where the runs differ."""
        saved = checkpoint.load(path)
        for key, value in self._settings().items():
            if saved.numbers["settings"][key] != value:
                raise PatinaError(
                    f"{key}: {value!r}, but {path} was trained with {saved.numbers['settings'][key]!r}; "
                    "write that, or train anew in another output_dir"
                )
        inject.load_state(self.task.adapted(), saved.lora)
        checkpoint.set_optimizer_state(self.step_once.optimizer, saved.optimizer, saved.numbers["optimizer"])
        self.step_once.scaler.load_state_dict(saved.numbers["scaler"])
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
        """Run the loop from `start` to the end and export."""
        config, plan = self.config, self.plan
        text = dump(config)
        write_text(config.output_dir / "config.yaml", text)
        exporter = self.medium.exporter()
        width = plan.accumulate * team.num_processes
        batches = self.medium.batches(start * width)
        with self.medium.watcher(start, text) as watcher:

            def on_step(progress) -> None:
                watcher.note(progress)
                if config.save_steps and progress.step % config.save_steps == 0 and progress.step < plan.steps:
                    exporter.at_step(progress.step, progress.epoch)
                    self._save(progress.step)

            train(self.task, batches, self.step_once, plan, team, start=start, on_step=on_step)
            self._save(plan.steps)
            path = exporter.final(plan.steps, plan.steps * width / plan.batches_per_epoch)
            self.medium.farewell(path, watcher)
        return path

    def _save(self, step: int) -> None:
        tensors, numbers = checkpoint.optimizer_state(self.step_once.optimizer)
        state = inject.state(self.task.adapted())
        kept = {"optimizer": numbers, "scaler": self.step_once.scaler.state_dict(), "settings": self._settings()}
        checkpoint.save(self.config.output_dir / "checkpoints", checkpoint.Checkpoint(step, state, tensors, kept))

    def _settings(self) -> Mapping[str, object]:
        """What a checkpoint fixes: with another value the state would not fit, or the data would be other data."""
        config = self.config
        trained = config.network.model_dump(mode="json", exclude={"dora_export", "dora_rank"})
        return {
            "lora_rank": config.lora_rank,
            "lora_alpha": config.alpha,
            "optimizer": config.optimizer,
            "seed": config.seed,
            "batch_size": config.batch_size,
            "gradient_accumulation_steps": config.gradient_accumulation_steps,
            **self.medium.settings(),
            **{f"network.{key}": value for key, value in trained.items()},
        }
