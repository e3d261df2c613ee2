"""One run's objects, taken up, carried through the loop, and written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate import Accelerator
from torch import nn

from patina import checkpoint, export
from patina.config import Config
from patina.configfile import dump
from patina.data.dataset import Item, epochs, report
from patina.data.texts import Texts
from patina.engine.capture import CapturedStep
from patina.engine.precision import DTYPES, Precision
from patina.engine.step import EagerStep
from patina.facts import training_facts
from patina.family import Family
from patina.files import write_text
from patina.loop import Plan, train
from patina.lora import inject, metadata
from patina.resume import compare, restore_scale, settings
from patina.tasks.image import ImageTask
from patina.watch.console import farewell, say
from patina.watch.previews import Previews
from patina.watch.watcher import Watcher

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline


FIRST_CAPTIONS = 4
"""Captions that previews draw where the config names no prompts."""


@dataclass(frozen=True)
class Session:
    """One run's objects, and what is written of it."""

    config: Config
    family: Family
    task: ImageTask
    step_once: EagerStep | CapturedStep
    plan: Plan
    items: list[Item]
    texts: Texts | None
    """None: captions are encoded anew at every step, as the text encoders learn."""
    began: float

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
        say(f"Patina {version('patina')}: {config.name}, a LoRA for {self.family.name}, on {precision.where}")
        for line in report(self.items):
            say(f"  pictures  {line}")
        for name, module in self.task.adapted().items():
            adapters = inject.adapters(module)
            weights = sum(weight.numel() for a in adapters.values() for weight in a.weights.values())
            rates = ", ".join(f"{rate:g}" for group, rate in plan.rates.items() if group.partition(" ")[0] == name)
            say(f"  trains    {name}: {len(adapters)} layers, {weights:,} weights, learning rate {rates}")
        batch = f"{config.batch_size} x {plan.accumulate}" if plan.accumulate > 1 else f"{config.batch_size}"
        passes = plan.steps * plan.accumulate / plan.batches_per_epoch
        say(f"  steps     {plan.steps} of batch {batch}: {passes:.1f} epochs" + (f", from {start} on" if start else ""))
        every = f", and every {config.save_steps} steps with a checkpoint" if config.save_steps else ""
        say(f"  writes    {config.output_dir / config.name}.safetensors{every}")

    def train(self, pipe: DiffusionPipeline, team: Accelerator, start: int) -> Path:
        """Run the loop from `start` to the end and export."""
        config, plan = self.config, self.plan
        text = dump(config)
        write_text(config.output_dir / "config.yaml", text)
        exporter = self._exporter(pipe)
        width = plan.accumulate * team.num_processes
        batches = epochs(self.items, config.batch_size, config.seed, start * width)
        if self.texts:
            batches = map(self.texts.into, batches)
        with Watcher(config.output_dir, plan.steps, start, self._previews(pipe), text) as watcher:

            def on_step(progress) -> None:
                watcher.note(progress)
                if self._saves(progress.step):
                    exporter.at_step(progress.step, progress.epoch)
                    self._save(progress.step)

            def pause(step: int) -> bool:
                return self._saves(step) or watcher.draws(step)

            train(self.task, batches, self.step_once, plan, team, start=start, on_step=on_step, pause=pause)
            self._save(plan.steps)
            path = exporter.final(plan.steps, plan.steps * width / plan.batches_per_epoch)
            watcher.thumbnail(path)
        farewell(path, config.trigger_word, config.output_dir / "logs")
        return path

    def _saves(self, step: int) -> bool:
        every = self.config.save_steps
        return every > 0 and step % every == 0 and step < self.plan.steps

    def _save(self, step: int) -> None:
        tensors, numbers = checkpoint.optimizer_state(self.step_once.optimizer)
        state = inject.state(self.task.adapted())
        kept = {"optimizer": numbers, "scaler": self.step_once.scaler.state_dict(), "settings": self._settings()}
        checkpoint.save(self.config.output_dir / "checkpoints", checkpoint.Checkpoint(step, state, tensors, kept))

    def _settings(self) -> Mapping[str, object]:
        config = self.config
        found = {
            "lora_alpha": config.alpha,
            "dataset.bucket_step": config.bucket_step,
            "pictures": len(self.items),
        }
        return settings(config.model_dump(mode="json"), found, self.task)

    def _previews(self, pipe: DiffusionPipeline) -> Previews | None:
        wanted = self.config.preview
        if not wanted.every:
            return None
        return Previews(
            pipe,
            prompts(self.config, self.items),
            every=wanted.every,
            folder=self.config.output_dir / "samples",
            negative_prompt=wanted.negative_prompt,
            steps=wanted.steps,
            guidance=wanted.guidance,
            seed=wanted.seed,
            size=(self.config.resolution, self.config.resolution),
            dtype=self.step_once.precision.dtype,
            encode=self.texts or self.task.encode,
        )

    def _exporter(self, pipe: DiffusionPipeline) -> export.Exporter:
        config = self.config
        spec = metadata.Modelspec(
            prediction_type=pipe.scheduler.config.prediction_type,
            trigger_phrase=config.trigger_word,
            implementation_version=f"patina/{version('patina')}",
        )
        modules: Mapping[str, nn.Module] = self.task.adapted()
        dtype = DTYPES[config.save_precision]
        facts = training_facts(config, self.plan, self.items, self.began)
        alpha, rank = facts.network_alpha, facts.network_dim
        bake = rank if config.network.dora_export == "baked" else None
        level = config.metadata
        return export.Exporter(
            self.family, modules, config.output_dir, config.name, alpha, dtype, facts, spec, level, bake
        )


def prompts(config: Config, items: Sequence[Item]) -> tuple[str, ...]:
    """What previews draw."""
    return config.preview.prompts or tuple(dict.fromkeys(item.caption for item in items))[:FIRST_CAPTIONS]
