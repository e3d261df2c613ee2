"""The words of a config file: other tools' names for our keys and values, and which key an unknown word means."""

import difflib
from functools import cache
from typing import NamedTuple

from patina.config import Inner, fields, inner, lists, sections
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
    Agreed("bucket_no_upscale", "true", "small pictures are enlarged only with dataset.upscale: true"),
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


def canonical(word: str) -> str | None:
    """Our key for a word of the file, or None if there is none."""
    if word in fields():
        return word
    if within := inner(word):
        return _canonical_within(within)
    return next((alias.key for alias in ALIASES if alias.word == word), None)


def _canonical_within(word: Inner) -> str | None:
    """Our key for a word in a list's section, which may be called as the run's own of the same meaning is."""
    known = lists()[word.list].model_fields
    outside = (canonical(word.leaf) or "").rpartition(".")[2]
    leaf = word.leaf if word.leaf in known else "dir" if outside == "train_data_dir" else outside
    return str(word._replace(leaf=leaf)) if leaf in known else None


def of_run(key: str) -> str:
    """The run's own key of the same meaning as one in a list, or the key itself."""
    within = inner(key)
    if within is None:
        return key
    section = within.list.rpartition(".")[0]
    return next((known for known in (f"{section}.{within.leaf}", within.leaf) if known in fields()), key)


def agreed(word: str) -> Agreed | None:
    return next((row for row in AGREED if row.word == word), None)


@cache
def _leaves() -> dict[str, str]:
    """Every known word without its section, with our full key for it."""
    ours = {key.rpartition(".")[2]: key for key in reversed(fields())}
    return {name: name for name in sections()} | {alias.word: alias.key for alias in ALIASES} | ours


def suggest(word: str) -> str | None:
    """Our key that an unknown word most likely means: the nearest in its section, or else anywhere."""
    section, _, leaf = word.lower().replace("-", "_").rpartition(".")
    siblings = _siblings(section)
    for known in (siblings, _leaves()):
        if near := difflib.get_close_matches(leaf, known, n=1, cutoff=0.75):
            return known[near[0]]
    near_by = (key for name, key in siblings.items() if _shares(leaf, name))
    far = (key for name, key in _leaves().items() if len(name) > 1 and _begins(leaf, name))
    return next(near_by, None) or next(far, None)


def _siblings(section: str) -> dict[str, str]:
    """The keys of a section, also of one in a list, by their names in it."""
    if within := inner(f"{section}.dir"):
        return {leaf: str(within._replace(leaf=leaf)) for leaf in lists()[within.list].model_fields}
    return {key.rpartition(".")[2]: key for key in fields() if key.rpartition(".")[0] == section}


def _shares(leaf: str, name: str) -> bool:
    """Whether all words of the one are among the words of the other, as in `offset` and `noise_offset`."""
    ours, theirs = set(leaf.split("_")), set(name.split("_"))
    return ours <= theirs or theirs <= ours


def _begins(leaf: str, name: str) -> bool:
    """Whether the one begins with all words of the other, as `rank_pattern` does with `rank`."""
    return f"{leaf}_".startswith(f"{name}_") or f"{name}_".startswith(f"{leaf}_")
