"""The composition root of text mode: config -> model, template, batches -> the loop -> adapter folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from accelerate import Accelerator

from patina.config import Config
from patina.configpresets import says
from patina.conversations import Conversations
from patina.course import eager_step, ladder, plan_run, to_resume
from patina.engine.capture import CapturedStep
from patina.engine.flat import Groups
from patina.engine.fused.ops import unfit
from patina.engine.ladder import RECOMPUTED, Rung
from patina.engine.memory import again
from patina.engine.precision import Precision
from patina.engine.step import EagerStep
from patina.errors import PatinaError
from patina.loop import Plan
from patina.lora import dropout, inject
from patina.lora import plan as network
from patina.session import Session
from patina.task import Batch
from patina.tasks.text import COMPONENT, TextTask
from patina.text import dataset
from patina.text.abilities import Abilities, look
from patina.text.advice import facts_of
from patina.text.checkpointing import checkpoints, recompute_layers
from patina.text.dataset import Rows, encode_rows
from patina.text.grid import shape_of
from patina.text.load import load_model, load_tokenizer
from patina.text.measure import Exam, examine
from patina.text.pack import Stream
from patina.text.questions import choose
from patina.text.read import read
from patina.text.rows import Row
from patina.text.shapes import columns_of
from patina.text.shard import shard
from patina.text.split import split
from patina.text.start import start_from
from patina.text.targets import choose_targets
from patina.text.template import Template, choose_template
from patina.watch.console import say

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FEWEST = 100
"""Batches an epoch that packing must leave: a small set in few long rows would be over before anything is learned."""


OFTEN = 3
"""Times that a shape of batches must have come for it to be captured."""
ADVICE = "a smaller max_length, quantize: 4bit, or a lower lora_rank"
"""What makes a step of texts smaller."""


class Batching(NamedTuple):
    """How rows are put into batches."""

    stream: Stream
    says: list[str]


def of_texts(config: Config, precision: Precision, team: Accelerator) -> tuple[Session, int]:
    """A run in text mode and the step that it begins after. Raises PatinaError for whatever the user can mend."""
    resumed = to_resume(config)
    if note := says(config):
        say(note)
    template = choose_template(load_tokenizer(config.base_model), config.text.template)
    columns = columns_of(config.text.columns)
    texts, unseen = (_read(places, columns) for places in (config.train_data, config.validation_data))
    if config.validation.split is not None:
        texts, unseen = split(texts, config.validation.split, config.seed)
    waits = torch.device("cpu") if config.engine.shard else precision.device
    model = load_model(config.base_model, precision.base, waits, config.quantize)
    rows = _encoded(config, template, model, texts, "train_data")
    able = look(model)
    task = _task(config, model, able, team)
    if config.init_lora and not resumed:
        for line in start_from(Path(config.init_lora), model):
            say(f"init_lora: {line}")
    batching = _batching(config, template, rows, able)
    groups = network.groups(config.network, task.adapted(), {COMPONENT: config.learning_rate})
    plan = plan_run(config, groups.rates, batching.stream.per_epoch(), team.num_processes)
    step = _engine(config, task, plan, groups, precision, team)
    step_once = ladder(
        config, step, _rungs(config, task), ADVICE, task.forget, task.end_step, blocks=checkpoints(model)
    )
    held = _held_out(config, template, model, unseen, batching.stream) if unseen else None
    exam = _exam(config, template, model, unseen)
    asked = choose(config.preview.prompts, unseen or texts, template, dataset.limit(model, None))
    facts = facts_of(texts, rows, dataset.sight(model), held is not None)
    medium = Conversations(config, task, template, precision, plan, rows, *batching, held, exam, facts, asked)
    session = Session(config, medium, task, step_once, plan, team)
    start = session.restore(resumed) if resumed else 0
    return session, start


def _read(places: str | Sequence[str] | None, columns: Mapping[str, str]) -> list[Row]:
    """The conversations of one file or several; what was found and guessed in them is said."""
    named = () if places is None else (places,) if isinstance(places, str) else places
    readings = [read(Path(place), columns) for place in named]
    for note in dict.fromkeys(note for reading in readings for note in reading.notes):
        say(note)
    return [row for reading in readings for row in reading.rows]


def _encoded(config: Config, template: Template, model: PreTrainedModel, texts: list[Row], name: str) -> Rows:
    longest = dataset.limit(model, config.max_length)
    return encode_rows(texts, template, longest, config.text.train_on == "all", name)


def _task(config: Config, model: PreTrainedModel, able: Abilities, team: Accelerator) -> TextTask:
    targets = choose_targets(model, config.lora_target)
    recipe = replace(network.recipe(config.network, COMPONENT, config.lora_rank, config.lora_alpha), lengths="rows")
    inject.adapt(model, targets, config.lora_rank, config.alpha, config.seed, recipe)
    if config.gradient_checkpointing:
        recompute_layers(model, again(config.network.drops))
    if config.engine.shard:
        say(shard(model, team))
    task = TextTask(model, able.plain_head)
    if config.network.drops:
        dropout.place_in_step(task, config.seed)
    return task


def _engine(
    config: Config, task: TextTask, plan: Plan, groups: Groups, precision: Precision, team: Accelerator
) -> EagerStep | CapturedStep:
    native = config.network.halves and precision.base != torch.float32
    eager = eager_step(config, task, plan, groups, precision, team, native=native)
    if native and config.engine.fuse == "auto" and not config.engine.shard:
        _fuse(task)
    if not task.apart or config.engine.capture == "off":
        return eager
    if config.network.drops:
        say("engine: with dropout, which is drawn anew in every pass, steps are not captured; each is slower")
        return eager
    met: Counter[tuple[int, ...]] = Counter()

    def often(batch: Batch) -> bool:
        met[shape_of(batch)] += 1
        return met[shape_of(batch)] >= OFTEN

    return CapturedStep(eager, often, say)


def _fuse(task: TextTask) -> None:
    from patina.engine.fused.decoder import fuse_decoder, sees_apart  # deferred: only for a GPU

    if reason := unfit(task.model.device):
        say(f"engine: the model's layers are left to transformers, which is slower ({reason})")
    elif fuse_decoder(task.model):
        task.apart = sees_apart(task.model)


def _rungs(config: Config, task: TextTask) -> list[Rung]:
    """What can be done to need less memory."""
    if config.gradient_checkpointing or not checkpoints(task.model):
        return []
    return [Rung(RECOMPUTED, partial(recompute_layers, task.model, again(config.network.drops)))]


def _batching(config: Config, template: Template, rows: Rows, able: Abilities) -> Batching:
    """Packed where it is asked for, or the model can and enough steps remain; and what to tell the user of it."""
    wanted = config.text.packing
    if wanted == "true" and not able.packs:
        raise PatinaError(
            "text.packing: this model sees from one conversation into the next when they are laid end to end; "
            "write text.packing: auto"
        )
    pad: Any = template.tokenizer.pad_token_id
    alone = Stream(rows.encoded, config.batch_size, config.seed, None, template.end if pad is None else pad)
    packed = replace(alone, packed=rows.max_length)
    if wanted == "true" or (wanted == "auto" and able.packs and packed.per_epoch() >= FEWEST):
        full = rows.tokens / (packed.per_epoch() * config.batch_size * rows.max_length)
        says = f"packed in rows of {rows.max_length} tokens, {full:.0%} full; batch_size counts these rows"
        return Batching(packed, [says])
    why = {
        "false": "as text.packing: false says",
        "auto": f"packed they would make only {packed.per_epoch()} batches an epoch"
        if able.packs
        else "this model would see from one into the next if they were packed",
    }[wanted]
    return Batching(alone, [f"each on its own beside others of its length ({why})"])


def _held_out(config: Config, template: Template, model: PreTrainedModel, texts: list[Row], trained: Stream) -> Stream:
    name = "validation_data" if config.validation_data else "validation.split"
    rows = _encoded(config, template, model, texts, name)
    return replace(trained, rows=rows.encoded)


def _exam(config: Config, template: Template, model: PreTrainedModel, texts: list[Row]) -> Exam | None:
    """What is answered at each measurement; the model may see more than a row is cut to."""
    if config.validation.generate is None:
        return None
    sight = max(dataset.limit(model, wanted) for wanted in (None, config.max_length))
    return examine(texts, template, config.validation.generate, sight)
