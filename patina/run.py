"""The composition root: the only file that sees the whole config. Config -> objects -> loop -> files."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate import Accelerator
from torch import nn

from patina import checkpoint, export
from patina.base import load_pipeline
from patina.caption.label import with_trigger
from patina.config import Config
from patina.configfile import dump
from patina.data.captions import Captioned, find_captions
from patina.data.dataset import Item, batches_per_epoch, epochs, load_items, report
from patina.data.images import find_images
from patina.engine.flat import Groups, flatten
from patina.engine.precision import DTYPES, Precision, choose_device, choose_precision
from patina.engine.step import EagerStep
from patina.errors import PatinaError
from patina.facts import training_facts
from patina.families import FAMILIES
from patina.family import Family, narrow
from patina.files import write_text
from patina.loop import Plan, train
from patina.lora import dropout, inject, metadata
from patina.lora import plan as network
from patina.lora.norms import limit
from patina.lora.start import start_from
from patina.optim import make_optimizer, schedule
from patina.tasks.image import ImageTask
from patina.watch.console import say
from patina.watch.previews import Previews
from patina.watch.watcher import Watcher

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

FIRST_CAPTIONS = 4
"""Captions that previews draw where the config names no prompts."""


def run(config: Config) -> Path:
    """Train as the config says and return the LoRA file. Raises PatinaError for whatever the user can mend."""
    began = time.time()
    resumed = _resume(config)
    precision = choose_precision(config.mixed_precision, choose_device(config.engine.device))
    team = Accelerator(cpu=precision.device.type == "cpu")
    if precision.note:
        say(precision.note)
    family = FAMILIES["sd15"]
    captioned = _captions(config)
    pipe = load_pipeline(config.base_model, family, precision.base, precision.device)
    with team.main_process_first():  # it fills the cache, and the others read it
        items = _items(config, captioned, pipe)
    task = _task(config, family, pipe, precision)
    if config.init_lora and not resumed:
        for line in start_from(Path(config.init_lora), task.adapted(), family):
            say(f"init_lora: {line}")
    groups = _groups(config, task)
    plan = _plan(config, groups, items, team)
    step_once = _engine(config, task, plan, groups, precision, team)
    session = Session(config, family, task, step_once, plan, items, began)
    start = session.restore(resumed) if resumed else 0
    session.announce(precision, start)
    return session.train(pipe, team, start)


def _resume(config: Config) -> Path | None:
    """The checkpoint to go on from; an earlier run's files are never written over unasked."""
    folder = config.output_dir / "checkpoints"
    latest = checkpoint.newest(folder)
    if config.resume not in (None, "auto"):
        return Path(config.resume)
    if config.resume is None and latest is not None:
        raise PatinaError(
            f"output_dir: {config.output_dir} holds an earlier run, saved at {latest.name}; "
            "write resume: auto to go on with it, or another output_dir to train anew"
        )
    return latest


def _captions(config: Config) -> list[Captioned]:
    images = find_images(config.train_data_dir)
    captioned, without = find_captions(images, config.train_data_dir, config.metadata_path)
    if without:
        names = ", ".join(path.name for path in without[:3])
        say(f"{len(without)} of {len(images)} pictures have no caption and are left out: {names}, ...")
    if not config.trigger_word:
        return captioned
    return [Captioned(item.path, with_trigger(config.trigger_word, item.caption)) for item in captioned]


def _items(config: Config, captioned: list[Captioned], pipe: DiffusionPipeline) -> list[Item]:
    return load_items(
        captioned,
        pipe.vae,
        resolution=config.resolution,
        bucket_step=config.bucket_step,
        buckets=config.dataset.buckets,
        cache_dir=config.cache_dir,
        workers=config.dataset.workers,
        repeats=config.dataset.repeats,
    )


def _task(config: Config, family: Family, pipe: DiffusionPipeline, precision: Precision) -> ImageTask:
    targets = dict(narrow(family, config.lora_target, config.network.convolutions))
    if not config.train_text_encoder:
        targets = {name: ends for name, ends in targets.items() if name not in family.text_encoders}
    if not targets:
        raise PatinaError("lora_target names layers of the text encoder alone, but train_text_encoder is false")
    for name, ends in targets.items():
        recipe = network.recipe(config.network, name, config.lora_rank, config.lora_alpha)
        inject.adapt(getattr(pipe, name), ends, config.lora_rank, config.alpha, config.seed, recipe)
    if config.gradient_checkpointing:
        getattr(pipe, family.denoiser).enable_gradient_checkpointing()
    objective = family.objective(pipe.scheduler, config.noise.min_snr_gamma).to(precision.device)
    task = ImageTask(family, pipe, objective, tuple(targets), seed=config.seed, noise_offset=config.noise.noise_offset)
    if config.network.drops:
        dropout.place_in_step(task, config.seed)
    return task


def _groups(config: Config, task: ImageTask) -> Groups:
    peaks = {
        name: config.te_learning_rate if name in task.family.text_encoders else config.learning_rate
        for name in task.adapted()
    }
    return network.groups(config.network, task.adapted(), peaks)


def _plan(config: Config, groups: Groups, items: list[Item], team: Accelerator) -> Plan:
    per_epoch = batches_per_epoch(items, config.batch_size)
    width = config.gradient_accumulation_steps * team.num_processes
    steps = config.max_steps or math.ceil(per_epoch * config.epochs / width)
    if config.warmup_steps >= steps:
        raise PatinaError(
            f"warmup_steps: {config.warmup_steps} does not fit into this run of {steps} steps; "
            f"write warmup_steps: {steps // 10}"
        )
    factor = schedule(config.scheduler, steps, config.warmup_steps)
    return Plan(steps, config.gradient_accumulation_steps, per_epoch, groups.rates, factor)


def _engine(
    config: Config, task: ImageTask, plan: Plan, groups: Groups, precision: Precision, team: Accelerator
) -> EagerStep:
    flats = flatten(task.adapted(), groups)
    optimizer = make_optimizer(config.optimizer, flats, plan.rates, config.weight_decay)
    if longest := config.network.max_norm:
        modules = list(task.adapted().values())
        optimizer.register_step_post_hook(lambda *_: limit(modules, longest))
    return EagerStep(task, flats, optimizer, precision, team, config.max_grad_norm)


@dataclass(frozen=True)
class Session:
    """One run's objects, and what is written of it."""

    config: Config
    family: Family
    task: ImageTask
    step_once: EagerStep
    plan: Plan
    items: list[Item]
    began: float

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
        say(f"Patina {version('patina')}: {config.name}, a LoRA for {self.family.name}, on {_where(precision)}")
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
        with Watcher(config.output_dir, plan.steps, start, self._previews(pipe), text) as watcher:

            def on_step(progress) -> None:
                watcher.note(progress)
                if config.save_steps and progress.step % config.save_steps == 0 and progress.step < plan.steps:
                    exporter.at_step(progress.step, progress.epoch)
                    self._save(progress.step)

            train(self.task, batches, self.step_once, plan, team, start=start, on_step=on_step)
            self._save(plan.steps)
            path = exporter.final(plan.steps, plan.steps * width / plan.batches_per_epoch)
            watcher.thumbnail(path.with_suffix(".preview.png"))
        self._farewell(path)
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
            "resolution": config.resolution,
            "dataset.repeats": config.dataset.repeats,
            "dataset.buckets": config.dataset.buckets,
            "dataset.bucket_step": config.bucket_step,
            "pictures": len(self.items),
            **{f"network.{key}": value for key, value in trained.items()},
        }

    def _previews(self, pipe: DiffusionPipeline) -> Previews | None:
        wanted = self.config.preview
        if not wanted.every:
            return None
        prompts = wanted.prompts or tuple(dict.fromkeys(item.caption for item in self.items))[:FIRST_CAPTIONS]
        return Previews(
            pipe,
            prompts,
            every=wanted.every,
            folder=self.config.output_dir / "samples",
            negative_prompt=wanted.negative_prompt,
            steps=wanted.steps,
            guidance=wanted.guidance,
            seed=wanted.seed,
            size=(self.config.resolution, self.config.resolution),
            dtype=self.step_once.precision.dtype,
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
        return export.Exporter(self.family, modules, config.output_dir, config.name, alpha, dtype, facts, spec, bake)

    def _farewell(self, path: Path) -> None:
        config = self.config
        words = f"<lora:{path.stem}:1>" + (f" {config.trigger_word}" if config.trigger_word else "")
        say(f"\nDone: {path}, read back and verified")
        say(f"  In a WebUI: copy it to models/Lora/ (ComfyUI: models/loras/) and write in the prompt: {words}")
        say(f"  The curves: tensorboard --logdir {config.output_dir / 'logs'}")


def _where(precision: Precision) -> str:
    kind = str(precision.dtype).removeprefix("torch.")
    return f"{precision.device.type} in {kind}"
