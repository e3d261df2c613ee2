"""The composition root of classification: config -> model with a head, labelled texts -> the loop -> adapter folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from accelerate import Accelerator

from patina.config import Config
from patina.course import eager_step, ladder, plan_run, to_resume
from patina.engine.ladder import RECOMPUTED, Rung
from patina.engine.memory import again
from patina.engine.precision import Precision
from patina.errors import PatinaError
from patina.labels import HeldOut, Labels
from patina.lora import dropout, inject
from patina.lora import plan as network
from patina.session import Session
from patina.tasks.label import LabelTask
from patina.tasks.text import COMPONENT
from patina.text.checkpointing import checkpoints, recompute_layers
from patina.text.classifier import Classifier, load_classifier, longest
from patina.text.labelled import read_labelled
from patina.text.labelset import LabelStream, encode, labels_of, refuse_others
from patina.text.load import load_tokenizer
from patina.text.rows import Row
from patina.text.shapes import columns_of
from patina.text.split import split
from patina.text.targets import choose_targets
from patina.watch.console import say

ADVICE = "a smaller max_length, quantize: 4bit, or a lower lora_rank"
"""What makes a step of texts smaller."""
LONGEST = 512
"""Tokens of a text where the config does not say: what tells its label is in its beginning."""


def of_labels(config: Config, precision: Precision, team: Accelerator) -> tuple[Session, int]:
    """A classification run and the step that it begins after. Raises PatinaError for whatever the user can mend."""
    resumed = to_resume(config)
    labels, texts, unseen = _texts(config)
    tokenizer = load_tokenizer(config.base_model)
    found = load_classifier(
        config.base_model, labels, tokenizer, precision.base, precision.device, config.quantize, config.seed
    )
    task = _task(config, found)
    length = _length(config, found)
    rows = encode(texts, labels, tokenizer, length)
    pad = found.model.config.get_text_config().pad_token_id
    stream = LabelStream.of(rows, config.batch_size, config.seed, pad)
    groups = network.groups(config.network, task.adapted(), {COMPONENT: config.learning_rate})
    plan = plan_run(config, groups.rates, stream.per_epoch(), team.num_processes)
    eager = eager_step(config, task, plan, groups, precision, team)
    step_once = ladder(config, eager, _rungs(config, task), ADVICE, task.tally, blocks=checkpoints(task.model))
    held = (
        LabelStream.of(encode(unseen, labels, tokenizer, length), config.batch_size, config.seed, pad)
        if unseen
        else None
    )
    medium = Labels(
        config,
        task,
        tokenizer,
        precision,
        plan,
        rows,
        stream,
        found.whole,
        found.fresh,
        HeldOut(task, held, labels) if held else None,
    )
    session = Session(config, medium, task, step_once, plan, team)
    start = session.restore(resumed) if resumed else 0
    return session, start


def _texts(config: Config) -> tuple[tuple[str, ...], list[Row], list[Row]]:
    """The labels by number, the rows to train on, and those to measure on."""
    columns = columns_of(config.text.columns)
    texts, unseen = (_read(places, columns) for places in (config.train_data, config.validation_data))
    labels = labels_of(texts, config.text.labels)
    if config.validation.split is not None:
        texts, unseen = split(texts, config.validation.split, config.seed)
        remedy = "give more rows of it, another seed, or rows of your choice as validation_data"
        refuse_others(
            unseen,
            [label for label in labels if label in {row.label for row in texts}],
            "the rows that validation.split leaves to train on",
            remedy,
        )
    else:
        refuse_others(unseen, labels, "train_data", "correct it, or give rows of that label to train on")
    return labels, texts, unseen


def _read(places: str | Sequence[str] | None, columns: Mapping[str, str]) -> list[Row]:
    """The rows of one file or several; what was found in them is said."""
    named = () if places is None else (places,) if isinstance(places, str) else places
    readings = [read_labelled(Path(place), columns) for place in named]
    for note in dict.fromkeys(note for reading in readings for note in reading.notes):
        say(note)
    return [row for reading in readings for row in reading.rows]


def _task(config: Config, found: Classifier) -> LabelTask:
    model = found.model
    targets = choose_targets(model, config.lora_target, found.whole)
    recipe = network.recipe(config.network, COMPONENT, config.lora_rank, config.lora_alpha)
    inject.adapt(model, targets, config.lora_rank, config.alpha, config.seed, recipe)
    inject.train_whole(model, found.whole)
    if config.gradient_checkpointing:
        recompute_layers(model, again(config.network.drops))
    task = LabelTask(model)
    if config.network.drops:
        dropout.place_in_step(task, config.seed)
    return task


def _length(config: Config, found: Classifier) -> int:
    """Tokens of a text at most. Raises PatinaError where more are wanted than the model has positions."""
    positions, wanted = longest(found.model), config.max_length
    if wanted and positions and wanted > positions:
        raise PatinaError(
            f"max_length: {wanted} is more than the {positions} tokens that this model can see; "
            f"write max_length: {positions}"
        )
    return wanted or min(LONGEST, positions or LONGEST)


def _rungs(config: Config, task: LabelTask) -> list[Rung]:
    """What can be done to need less memory."""
    if config.gradient_checkpointing or not checkpoints(task.model):
        return []
    return [Rung(RECOMPUTED, partial(recompute_layers, task.model, again(config.network.drops)))]
