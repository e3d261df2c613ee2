"""The composition root: config -> objects -> loop -> files: pictures here, texts in `textrun` and `labelrun`."""

from __future__ import annotations

import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator, InitProcessGroupKwargs

from patina.bases.find import find_base
from patina.bases.load import load_pipeline, size_note
from patina.bases.quantize import keep_gradients
from patina.clip import Reading, count_cut
from patina.config import Config
from patina.configmodes import LABELS, TEXT
from patina.course import eager_step, ladder, plan_run, to_resume
from patina.data.dataset import Item, batch_shapes, batches_per_epoch, heaviest
from patina.data.texts import Texts, encode_texts
from patina.data.wording import possible
from patina.engine.capture import CapturedStep
from patina.engine.flat import Groups
from patina.engine.fused.blocks import fuse
from patina.engine.fused.ops import unfit
from patina.engine.ladder import RECOMPUTED, Rung
from patina.engine.memory import enough_for
from patina.engine.precision import Precision, choose_device, choose_precision
from patina.engine.repeatable import repeatable
from patina.engine.step import EagerStep
from patina.engine.team import PATIENCE
from patina.errors import PatinaError
from patina.family import Family, narrow
from patina.files import sweep
from patina.heldout import HeldOut
from patina.labelrun import of_labels
from patina.lock import kept, locked
from patina.loop import Plan
from patina.lora import dropout, inject
from patina.lora import plan as network
from patina.lora.start import start_from
from patina.objective import with_terminal_snr
from patina.pictures import Pictures, find, load, prompts, size_up
from patina.session import Session
from patina.tasks.image import ImageTask
from patina.tensors import size_of
from patina.textrun import of_texts
from patina.watch.console import say

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline


ADVICE = "a smaller resolution, a lower lora_rank, or train_text_encoder: false"
"""What makes a step of pictures smaller."""
OFTEN = 6
"""Times that a run must meet a shape of batches for it to be captured: that costs about as much as it saves on one."""


def run(config: Config) -> Path:
    """Train as the config says and return what was written. Raises PatinaError for whatever the user can mend."""
    with repeatable(config.engine.deterministic):
        return _run(config)


def _run(config: Config) -> Path:
    precision, team = _machine(config)
    with locked(config.output_dir) if team.is_main_process else nullcontext(), kept(config.output_dir):
        if team.is_main_process:
            sweep(config.output_dir / "checkpoints")
        session, start = _prepared(config, precision, team)
        with enough_for("training", "write gradient_checkpointing: true; resume=auto goes on from what is saved"):
            return session.train(start)


def foresee(config: Config) -> None:
    """Say what `run` would do and what it would take, and write nothing. Raises PatinaError as it does."""
    precision, team = _machine(config)
    session, start = _prepared(config, precision, team, planned=True)
    session.foresee(start)


def _machine(config: Config) -> tuple[Precision, Accelerator]:
    precision = choose_precision(config.mixed_precision, choose_device(config.engine.device))
    if precision.note:
        say(precision.note)
    patient = InitProcessGroupKwargs(timeout=PATIENCE)
    return precision, Accelerator(cpu=precision.device.type == "cpu", kwargs_handlers=[patient])


def _prepared(config: Config, precision: Precision, team: Accelerator, *, planned: bool = False) -> tuple[Session, int]:
    """The run, announced, and the step that it begins after; one that is only `planned` encodes nothing to keep."""
    with enough_for("loading", "write quantize: 4bit, or another base_model"):
        if config.task_type == TEXT:
            session, start = of_texts(config, precision, team)
        elif config.task_type == LABELS:
            session, start = of_labels(config, precision, team)
        else:
            session, start = _of_pictures(config, precision, team, planned)
    session.announce(precision, start)
    return session, start


def _of_pictures(config: Config, precision: Precision, team: Accelerator, planned: bool) -> tuple[Session, int]:
    began = time.time()
    resumed = to_resume(config)
    base = find_base(config.base_model, config.family, config.noise.prediction)
    say(base.says)
    family = base.family
    found = find(config)
    later = (family.denoiser,)  # the autoencoder has the device to itself while it encodes
    pipe = load_pipeline(base, precision.base, precision.device, config.vae, bits=config.quantize, waiting=later)
    if note := size_note(pipe, config.resolution):
        say(note)
    pipe.scheduler = with_terminal_snr(pipe.scheduler, config.noise.zero_terminal_snr)
    with team.main_process_first():  # it fills the cache, and the others read it
        items, unseen = (size_up if planned else load)(config, found, pipe)
    if not config.preview.every:
        pipe.vae.to("cpu")  # it has encoded what it was there for
    denoiser = getattr(pipe, family.denoiser).to(precision.device)
    if config.quantize != "none":
        keep_gradients(denoiser)
    task = _task(config, family, pipe, precision)
    if config.init_lora and not resumed:
        for line in start_from(Path(config.init_lora), task.adapted()):
            say(f"init_lora: {line}")
    texts = _texts(config, task, items, unseen, precision, team, planned)
    groups = _groups(config, task)
    plan = plan_run(config, groups.rates, batches_per_epoch(items, config.batch_size), team.num_processes)
    step = _engine(config, task, plan, groups, items, precision, team)
    step_once = ladder(config, step, _rungs(config, task), ADVICE)
    timesteps = task.objective.timesteps
    held = HeldOut(unseen, step_once.eager, texts, config.batch_size, timesteps, config.seed) if unseen else None
    medium = Pictures(config, family, pipe, task, precision, plan, items, texts, began, held)
    session = Session(config, medium, task, step_once, plan, team)
    return session, session.restore(resumed) if resumed else 0


def _task(config: Config, family: Family, pipe: DiffusionPipeline, precision: Precision) -> ImageTask:
    targets = dict(narrow(family, config.lora_target, config.network.convolutions))
    if not _trains_text(config, family):
        targets = {name: ends for name, ends in targets.items() if name not in family.text_encoders}
    if not targets:
        raise PatinaError(
            "lora_target names layers of the text encoder alone, which is not trained; write train_text_encoder: true"
        )
    for name, ends in targets.items():
        recipe = network.recipe(config.network, name, config.lora_rank, config.lora_alpha)
        inject.adapt(getattr(pipe, name), ends, config.lora_rank, config.alpha, config.seed, recipe)
    objective = family.objective(pipe.scheduler, config.noise.min_snr_gamma).to(precision.device)
    offset, reading = config.noise.noise_offset, _reading(config)
    parts = tuple(targets)
    task = ImageTask(family, pipe, objective, parts, seed=config.seed, noise_offset=offset, reading=reading)
    if config.gradient_checkpointing:
        task.recompute(config.network.drops)
    if config.network.drops:
        dropout.place_in_step(task, config.seed)
    return task


def _reading(config: Config) -> Reading:
    return Reading(config.clip_skip or 1, config.max_token_length, config.dataset.caption_weights)


def _texts(
    config: Config,
    task: ImageTask,
    items: list[Item],
    unseen: list[Item],
    precision: Precision,
    team: Accelerator,
    planned: bool,
) -> Texts | None:
    """Frozen text encoders have said all that they will ever say before training begins, and leave the accelerator."""
    pipe = task.pipe
    captions = [text for item in items for text in possible(item.caption, item.wording)]
    captions += [item.caption for item in unseen]
    if cut := count_cut(pipe.tokenizer, captions, task.reading):
        say(f"{cut} of {len(captions)} captions are longer than {config.max_token_length} tokens; the rest is cut off")
    if task.trains_text:
        return None
    if any(item.wording.varies for item in items):
        size = sum(size_of(getattr(pipe, name).state_dict()) for name in task.family.text_encoders)
        kept = f"the text encoders stay on the device ({size / 2**20:,.0f} MiB)"
        say(f"captions change each time, and are encoded at each step: {kept}")
        return None
    if planned:
        with TemporaryDirectory() as folder:
            heavy = heaviest(items, config.batch_size)["captions"]
            return encode_texts(task.family, pipe, heavy, task.reading, precision, Path(folder))
    wanted = [*captions, *prompts(config, items), config.preview.negative_prompt]
    with team.main_process_first():
        return encode_texts(task.family, pipe, wanted, task.reading, precision, config.cache_dir)


def _trains_text(config: Config, family: Family) -> bool:
    if config.train_text_encoder is not None:
        return config.train_text_encoder
    if config.text_encoder_lr is not None and not family.trains_text:
        raise PatinaError(
            f"text_encoder_lr is given, but the text encoders of {family.name} are trained only where the config says "
            "so; write train_text_encoder: true, or leave text_encoder_lr out"
        )
    return family.trains_text


def _groups(config: Config, task: ImageTask) -> Groups:
    peaks = {
        name: config.te_learning_rate if name in task.family.text_encoders else config.learning_rate
        for name in task.adapted()
    }
    return network.groups(config.network, task.adapted(), peaks)


def _rungs(config: Config, task: ImageTask) -> list[Rung]:
    """What can be done to need less memory."""
    if config.gradient_checkpointing:
        return []
    return [Rung(RECOMPUTED, partial(task.recompute, config.network.drops))]


def _fuse(task: ImageTask) -> None:
    denoiser = getattr(task.pipe, task.family.denoiser)
    if reason := unfit(denoiser.device):
        say(f"engine: the UNet's blocks are left to diffusers, a third slower ({reason})")
    else:
        fuse(denoiser)


def _engine(
    config: Config,
    task: ImageTask,
    plan: Plan,
    groups: Groups,
    items: list[Item],
    precision: Precision,
    team: Accelerator,
) -> EagerStep | CapturedStep:
    native = config.network.halves and precision.base != torch.float32
    eager = eager_step(config, task, plan, groups, precision, team, native=native)
    if native and precision.device.type == "cuda" and config.engine.fuse == "auto":
        _fuse(task)
    if precision.device.type != "cuda" or config.engine.capture == "off":
        return eager
    if config.network.drops:
        say("engine: with dropout, which is drawn anew in every pass, steps are not captured; each is slower")
        return eager
    shapes = batch_shapes(items, config.batch_size)
    epochs = plan.steps * plan.accumulate / plan.batches_per_epoch  # that one process computes
    return CapturedStep(eager, lambda batch: epochs * shapes[batch["mean"].shape] >= OFTEN, say)
