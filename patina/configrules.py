"""What several keys of a config must satisfy together."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from patina.configmodes import IMAGE, LABELS, TEXT
from patina.confignetwork import NETWORK_RULES, Network

if TYPE_CHECKING:
    from patina.config import Config


OWN = ("cache", "checkpoints", "logs", "samples")
"""Folders that runs keep in output_dir; in text mode the finished LoRA is a folder beside them."""


class Rule(NamedTuple):
    """Something that several keys must satisfy together."""

    keys: tuple[str, ...]
    """The keys that decide it; the first is the one to complain about."""
    broken: Callable[[Config], str | None]
    """Problem and remedy, or None if all is well."""


def _name_unusable(config: Config) -> str | None:
    bad = sorted({char for char in config.name if char in ":>=,/\\." or not char.isprintable()})
    remedy = f"write output_name: {''.join('_' if char in bad else char for char in config.name).strip() or 'my_lora'}"
    if bad:
        return f"{config.name!r} contains {' '.join(map(_shown, bad))}, where WebUIs cut a LoRA's name; {remedy}"
    if not config.name or config.name != config.name.strip():
        return f"{config.name!r} is empty or has spaces at its ends, so no prompt can call it; {remedy}"
    if config.name in ("none", "Addams"):
        return f"WebUIs keep the name {config.name!r} for themselves; write output_name: {config.name}_lora"
    return None


def _name_kept(config: Config) -> str | None:
    if config.task_type == IMAGE or config.name.casefold() not in OWN:
        return None
    return f"{config.name} is a folder that runs keep in output_dir; write output_name: {config.name}_lora"


def _shown(char: str) -> str:
    return char if char.isprintable() else repr(char)


def _text_rate_unused(config: Config) -> str | None:
    if config.text_encoder_lr is None or config.train_text_encoder is not False:
        return None
    return "is given, but train_text_encoder is false; leave it out, or write train_text_encoder: true"


def _warmup_too_long(config: Config) -> str | None:
    if config.max_steps is None or config.warmup_steps < config.max_steps:
        return None
    short = config.max_steps // 10
    return f"{config.warmup_steps} does not fit into the {config.max_steps} of max_steps; write warmup_steps: {short}"


def _step_too_wide(config: Config) -> str | None:
    if config.bucket_step <= config.resolution:
        return None
    return f"{config.bucket_step} is wider than the resolution {config.resolution}; leave it out"


def _no_pictures(config: Config) -> str | None:
    if config.task_type != IMAGE or config.picture_sets:
        return None
    return "is missing; write e.g. train_data_dir: data/style_train"


def _table_of_nothing(config: Config) -> str | None:
    if config.task_type != IMAGE or config.metadata_path is None or config.train_data_dir or not config.picture_sets:
        return None
    return "has the captions of train_data_dir, which is not given; write it in the subset that it is of"


def _no_texts(config: Config) -> str | None:
    if config.task_type == IMAGE or config.train_data:
        return None
    example = "reviews.csv" if config.task_type == LABELS else "answers.jsonl"
    return f"is missing; write e.g. train_data: ./data/{example}"


def _algo_unfit_for_text(config: Config) -> str | None:
    algo = config.network.algo
    if config.task_type == IMAGE or algo == "lora" or (config.task_type == TEXT and algo == "dora"):
        return None
    return f"{algo} is not for {config.task_type}; write network.algo: lora"


def _quantized_start(config: Config) -> str | None:
    if config.quantize == "none" or config.network.init in ("kaiming", "gaussian"):
        return None
    return f"{config.network.init} starts from weights that quantize rounds away; write network.init: kaiming"


def _quantized_dora(config: Config) -> str | None:
    if config.quantize == "none" or config.network.algo != "dora":
        return None
    return "dora measures the base's weights, which quantize leaves no way to read; write network.algo: lora"


def _shared_dora(config: Config) -> str | None:
    if not config.engine.shard or config.network.algo != "dora":
        return None
    return "dora measures the base's weights, which engine.shard keeps in parts; write network.algo: lora"


def _unmeasured(name: str) -> Rule:
    """For a key of `validation` that asks for measurements."""

    def broken(config: Config) -> str | None:
        pictures = config.task_type == IMAGE
        other = config.validation.data_dir if pictures else config.validation_data
        if getattr(config.validation, name) is None or other or config.validation.split:
            return None
        key = "validation.data_dir" if pictures else "validation_data"
        return f"is given, but there is nothing to measure on; write {key} or validation.split, or leave it out"

    return Rule((f"validation.{name}", "validation_data", "validation.split", "validation.data_dir"), broken)


def _shard_measured(config: Config) -> str | None:
    if not config.engine.shard or not (config.validation_data or config.validation.split):
        return None
    return "true leaves no process a whole model to measure with; leave validation out, or write engine.shard: false"


def _measured_once(config: Config) -> str | None:
    if config.validation.patience is None or config.validation.every or config.save_steps:
        return None
    return "counts measurements, and there is only one, at the end; write validation.every: 100"


def _columns_unnamed(config: Config) -> str | None:
    for pair in config.text.columns:
        meaning, _, heading = pair.partition("=")
        if not meaning.strip() or not heading.strip():
            example = "label=类别" if config.task_type == LABELS else "question=标题"
            return f"has {pair!r}; write MEANING=HEADING, e.g. {example}"
    return None


def _labels_too_few(config: Config) -> str | None:
    labels = config.text.labels
    if len(labels) == 1:
        return f"names one label, {labels[0]}, and to choose takes two; name the others, or leave it out"
    twice = next((label for at, label in enumerate(labels) if label in labels[:at]), None)
    return None if twice is None else f"names {twice} twice; name each label once"


def _held_out_twice(config: Config) -> str | None:
    key = "validation_data" if config.validation_data else "validation.data_dir"
    if config.validation.split is None or not (config.validation_data or config.validation.data_dir):
        return None
    return f"is given beside {key}, which says already what to measure on; leave one of them out"


def _output_among_pictures(config: Config) -> str | None:
    folders = {"train_data_dir": config.train_data_dir, "dataset.reg_dir": config.dataset.reg_dir}
    folders |= {f"dataset.subsets[{at}].dir": subset.dir for at, subset in enumerate(config.dataset.subsets)}
    output = Path(os.path.abspath(config.output_dir))
    key = next((key for key, path in folders.items() if path and output.is_relative_to(os.path.abspath(path))), None)
    if key is None:
        return None
    return f"lies in {key}, where previews would become training pictures; write output_dir: ./output/my_lora"


def _regularised_by_itself(config: Config) -> str | None:
    trained, other = {os.path.abspath(one.folder) for one in config.picture_sets}, config.dataset.reg_dir
    if other is None or os.path.abspath(other) not in trained:
        return None
    return "is trained on itself; name a folder with other pictures of the same class, or leave it out"


def _start_unfit(config: Config) -> str | None:
    network = config.network
    if config.init_lora is None or (network.algo in ("lora", "locon") and network.init in ("kaiming", "gaussian")):
        return None
    return "starts a LoRA that has no start of its own; write network.algo: lora or locon, and no network.init"


def _in_network(broken: Callable[[Network], str | None]) -> Callable[[Config], str | None]:
    return lambda config: broken(config.network)


RULES = (
    Rule(("train_data_dir", "dataset.subsets"), _no_pictures),
    Rule(("metadata_path", "train_data_dir"), _table_of_nothing),
    Rule(("train_data", "train_data_dir"), _no_texts),
    Rule(("network.algo", "task_type"), _algo_unfit_for_text),
    Rule(("network.init", "quantize"), _quantized_start),
    Rule(("network.algo", "quantize"), _quantized_dora),
    Rule(("network.algo", "engine.shard"), _shared_dora),
    *(_unmeasured(name) for name in ("every", "generate", "patience")),
    Rule(("validation.patience", "validation.every", "save_steps"), _measured_once),
    Rule(("validation.split", "validation_data", "validation.data_dir"), _held_out_twice),
    Rule(("engine.shard", "validation_data", "validation.split"), _shard_measured),
    Rule(("text.columns",), _columns_unnamed),
    Rule(("text.labels",), _labels_too_few),
    Rule(("output_name", "output_dir"), _name_unusable),
    Rule(("output_name", "output_dir", "task_type"), _name_kept),
    Rule(("text_encoder_lr", "train_text_encoder"), _text_rate_unused),
    Rule(("warmup_steps", "max_steps"), _warmup_too_long),
    Rule(("dataset.bucket_step", "resolution"), _step_too_wide),
    Rule(("output_dir", "train_data_dir", "dataset.reg_dir"), _output_among_pictures),
    Rule(("dataset.reg_dir", "train_data_dir"), _regularised_by_itself),
    Rule(("init_lora", "network.algo", "network.init"), _start_unfit),
    *(Rule(rule.keys, _in_network(rule.broken)) for rule in NETWORK_RULES),
)
