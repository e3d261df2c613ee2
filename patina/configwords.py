"""The words of a config file: other tools' names for our keys and values, and how a written value is read."""

import difflib
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

import yaml

from patina.config import fields, kinds, sections
from patina.configdata import DATASET_ALIASES
from patina.configtext import TEXT_ALIASES, TEXT_SYNONYMS


class Alias(NamedTuple):
    """Another name for one of our keys."""

    word: str
    key: str
    note: str
    """Who writes it so."""


ALIASES = (
    Alias("model_name_or_path", "base_model", "LLaMA-Factory, transformers"),
    Alias("pretrained_model_name_or_path", "base_model", "diffusers, sd-scripts"),
    Alias("dataset", "train_data_dir", "LLaMA-Factory; when its value is a folder and not a section"),
    Alias("dataset_dir", "train_data_dir", "LLaMA-Factory"),
    Alias("dataset_path", "train_data_dir", "common"),
    Alias("train_dir", "train_data_dir", "common"),
    Alias("image_dir", "train_data_dir", "common"),
    Alias("instance_data_dir", "train_data_dir", "diffusers"),
    Alias("trigger", "trigger_word", "common"),
    Alias("rank", "lora_rank", "diffusers"),
    Alias("r", "lora_rank", "peft"),
    Alias("lora_r", "lora_rank", "common"),
    Alias("network_dim", "lora_rank", "sd-scripts"),
    Alias("alpha", "lora_alpha", "common"),
    Alias("network_alpha", "lora_alpha", "sd-scripts"),
    Alias("target_modules", "lora_target", "peft"),
    Alias("lora_target_modules", "lora_target", "common"),
    Alias("per_device_train_batch_size", "batch_size", "LLaMA-Factory, transformers"),
    Alias("train_batch_size", "batch_size", "diffusers, sd-scripts"),
    Alias("num_train_epochs", "epochs", "LLaMA-Factory, transformers, diffusers"),
    Alias("max_train_epochs", "epochs", "sd-scripts"),
    Alias("num_epochs", "epochs", "common"),
    Alias("max_train_steps", "max_steps", "diffusers, sd-scripts"),
    Alias("steps", "max_steps", "common"),
    Alias("lr", "learning_rate", "common"),
    Alias("unet_lr", "learning_rate", "sd-scripts"),
    Alias("lr_scheduler_type", "scheduler", "LLaMA-Factory, transformers"),
    Alias("lr_scheduler", "scheduler", "diffusers, sd-scripts"),
    Alias("lr_warmup_steps", "warmup_steps", "diffusers, sd-scripts"),
    Alias("optim", "optimizer", "LLaMA-Factory, transformers"),
    Alias("optimizer_type", "optimizer", "sd-scripts"),
    Alias("save_every_n_steps", "save_steps", "sd-scripts"),
    Alias("save_every", "save_steps", "common"),
    Alias("save_total_limit", "keep_checkpoints", "transformers"),
    Alias("checkpointing_steps", "save_steps", "diffusers"),
    Alias("resume_from_checkpoint", "resume", "LLaMA-Factory, transformers, diffusers"),
    Alias("min_snr_gamma", "noise.min_snr_gamma", "sd-scripts"),
    Alias("snr_gamma", "noise.min_snr_gamma", "diffusers"),
    Alias("noise_offset", "noise.noise_offset", "diffusers, sd-scripts"),
    Alias("zero_terminal_snr", "noise.zero_terminal_snr", "sd-scripts"),
    Alias("rescale_betas_zero_snr", "noise.zero_terminal_snr", "diffusers"),
    *(Alias(*row) for row in DATASET_ALIASES),
    Alias("sample_every_n_steps", "preview.every", "sd-scripts"),
    Alias("fp16", "mixed_precision", "LLaMA-Factory, transformers: `fp16: true`"),
    Alias("bf16", "mixed_precision", "LLaMA-Factory, transformers: `bf16: true`"),
    *(Alias(*row) for row in TEXT_ALIASES),
)

SWITCHES: dict[str, object] = {
    **{"fp16": "fp16", "bf16": "bf16", "alpha_mask": "alpha", "masked_training": "files"},
    **{"random_crop": "random", "color_aug": 0.1},
}
"""The aliases that are switched on or off, and what their key is then."""

YES, NO = ("true", "yes", "on"), ("false", "no", "off")

SYNONYMS: dict[str, dict[str, str | None]] = {
    "optimizer": {
        **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit"), "adamw8bit"),
        **dict.fromkeys(("adamw_torch", "adamw_torch_fused"), "adamw"),
    },
    "scheduler": {"constant_with_warmup": "constant"},
    "lora_target": {"all": "full", "all-linear": "full"},
    "mixed_precision": {**dict.fromkeys((*NO, "none", "float32"), "fp32"), "float16": "fp16", "bfloat16": "bf16"},
    "save_precision": {"float": "fp32", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16"},
    "resume": {**dict.fromkeys((*YES, "latest"), "auto"), **dict.fromkeys((*NO, "none"), None)},
    "max_steps": {"-1": None},
    "dataset.crop": {"center": "centre"},
    "dataset.masks": dict.fromkeys((*NO, "none"), "off"),
    **TEXT_SYNONYMS,
}
"""Other spellings of a key's values, in lower case; None: the same as an empty value."""


class Agreed(NamedTuple):
    """A word of other tools that we have no key for, accepted where it says what we do anyway."""

    word: str
    value: str
    why: str
    """Said to who asks for something else."""


AGREED = (
    Agreed("keep_tokens_separator", "|||", "tags that stay are parted from the others by |||"),
    Agreed("use_lora", "true", "Patina trains a LoRA and nothing else"),
    Agreed("finetuning_type", "lora", "Patina trains a LoRA and nothing else"),
    Agreed("freeze_model", "true", "the base model always stays as it is"),
    Agreed("stage", "sft", "Patina trains on examples and has no other stages"),
    Agreed("do_train", "true", "a run of Patina always trains"),
)

EXTRA = {
    "lora_target": " or a list of module names",
}
"""What to add when a value is not one of a key's choices."""


class Unfit(ValueError):
    """A key or value that we cannot take: the problem, and either what to do or a value that could be taken."""

    def __init__(self, problem: str, example: object = None, remedy: str = ""):
        super().__init__(problem)
        self.example = example
        self.remedy = remedy


def canonical(word: str) -> str | None:
    """Our key for a word of the file, or None if there is none."""
    if word in fields():
        return word
    return next((alias.key for alias in ALIASES if alias.word == word), None)


def agreed(word: str) -> Agreed | None:
    return next((row for row in AGREED if row.word == word), None)


def check_agreed(row: Agreed, node: yaml.Node) -> None:
    """Raise Unfit if `node` asks for something that we do not do."""
    text = node.value.lower() if isinstance(node, yaml.ScalarNode) else ""
    if not is_empty(node) and text != row.value and not (row.value in YES and text in YES):
        raise Unfit(row.why, remedy=f"take {row.word} out")


def is_empty(node: yaml.Node) -> bool:
    """Whether nothing is written: no value, YAML's null, or a quoted nothing."""
    if not isinstance(node, yaml.ScalarNode):
        return False
    return node.value == "" or (node.style is None and node.value.lower() in ("~", "null"))


def truth(node: yaml.Node) -> bool:
    """The yes or no that `node` spells; raises Unfit if it spells neither."""
    text = node.value.lower() if isinstance(node, yaml.ScalarNode) else ""
    if text not in YES + NO:
        raise Unfit("is neither true nor false", example=True)
    return text in YES


def read_value(key: str, node: yaml.Node) -> object:
    """The value that `node` spells for our key `key`, None if it is empty; raises Unfit."""
    if is_empty(node):
        return None
    allowed = kinds(fields()[key].annotation)
    takes_list = any(get_origin(kind) is tuple for kind in allowed)
    if isinstance(node, yaml.SequenceNode) and takes_list:
        return _read_texts(key, node)
    if not isinstance(node, yaml.ScalarNode):
        raise Unfit(f"is a {'list' if isinstance(node, yaml.SequenceNode) else 'group of keys'}", example(key))
    _refuse_unwritable(key, node.value)
    synonyms = SYNONYMS.get(key, {})
    text = synonyms.get(node.value.lower(), node.value)
    return None if text is None else _read_text(key, text, allowed, takes_list)


def _read_texts(key: str, node: yaml.SequenceNode) -> tuple[str, ...]:
    if not all(isinstance(item, yaml.ScalarNode) and not is_empty(item) for item in node.value):
        raise Unfit("may hold only texts, none of them empty", example(key))
    for item in node.value:
        _refuse_unwritable(key, item.value)
    return tuple(item.value for item in node.value)


def _refuse_unwritable(key: str, text: str) -> None:
    """Refuse what YAML's escapes and broken terminals can spell and no file can hold: a zero byte, half a character."""
    if bad := next((char for char in text if char == "\0" or "\ud800" <= char <= "\udfff"), None):
        raise Unfit(f"may not hold the character {bad!r}", example(key))


def _read_text(key: str, text: str, allowed: tuple[Any, ...], takes_list: bool) -> object:
    choices = choices_of(allowed)
    if choices:
        if text.lower() in choices:
            return choices[text.lower()]
        if takes_list and "," in text:
            return tuple(part.strip() for part in text.split(",") if part.strip())
        near = difflib.get_close_matches(text.lower(), choices, n=1)
        extra = EXTRA.get(key, "")
        raise Unfit(f"{short(text)} is not one of: {', '.join(choices)}{extra}", near[0] if near else example(key))
    if takes_list and str not in allowed:
        raise Unfit(f"{short(text)} is not a list", (text,))
    read, what = READERS[allowed[0]]
    try:
        return read(text)
    except ValueError:
        raise Unfit(f"{short(text)} is not {what}", example(key)) from None


def _whole(text: str) -> int:
    """A whole number, also spelled `1e3` or `4.0`."""
    try:
        return int(text)
    except ValueError:
        number = _number(text)
        if number != int(number):
            raise
        return int(number)


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number


def _flag(text: str) -> bool:
    return truth(yaml.ScalarNode("", text))


READERS: dict[Any, tuple[Callable[[str], object], str]] = {
    int: (_whole, "a whole number"),
    float: (_number, "a number"),
    bool: (_flag, "true or false"),
    str: (str, "a text"),
    Path: (Path, "a path"),
}
"""How each type is read from its text, and what to call it."""


def choices_of(allowed: tuple[Any, ...]) -> dict[str, str | int]:
    """The fixed values among a key's types by how they are written; empty if it has none."""
    return {str(word): word for kind in allowed if get_origin(kind) is Literal for word in get_args(kind)}


def example(key: str) -> Any:
    """A value that `key` can take: the one shown where it is declared, or else its default."""
    field = fields()[key]
    return field.examples[0] if field.examples else field.default


def short(text: str) -> str:
    """The text in quotes, cut to fit a line."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


@cache
def _leaves() -> dict[str, str]:
    """Every known word without its section, with our full key for it."""
    ours = {key.rpartition(".")[2]: key for key in reversed(fields())}
    return {name: name for name in sections()} | {alias.word: alias.key for alias in ALIASES} | ours


def suggest(word: str) -> str | None:
    """Our key that an unknown word most likely means: the nearest in its section, or else anywhere."""
    section, _, leaf = word.lower().replace("-", "_").rpartition(".")
    siblings = {key.rpartition(".")[2]: key for key in fields() if key.rpartition(".")[0] == section}
    for known in (siblings, _leaves()):
        if near := difflib.get_close_matches(leaf, known, n=1, cutoff=0.75):
            return known[near[0]]
    near_by = (key for name, key in siblings.items() if _shares(leaf, name))
    far = (key for name, key in _leaves().items() if len(name) > 1 and _begins(leaf, name))
    return next(near_by, None) or next(far, None)


def _shares(leaf: str, name: str) -> bool:
    """Whether all words of the one are among the words of the other, as in `offset` and `noise_offset`."""
    ours, theirs = set(leaf.split("_")), set(name.split("_"))
    return ours <= theirs or theirs <= ours


def _begins(leaf: str, name: str) -> bool:
    """Whether the one begins with all words of the other, as `rank_pattern` does with `rank`."""
    return f"{leaf}_".startswith(f"{name}_") or f"{name}_".startswith(f"{leaf}_")
