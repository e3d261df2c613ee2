"""Which keys of a config belong to which kinds of training, and how a run of one kind takes another's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

IMAGE, TEXT, LABELS = "image", "text-generation", "text-classification"


class Mode(NamedTuple):
    """What one value of `task_type` has for itself."""

    keys: frozenset[str]
    """Keys and whole sections that have no meaning in every mode."""
    what: str
    """What such a key is for."""


MODES: Mapping[str, Mode] = {
    IMAGE: Mode(
        frozenset(
            {
                *("metadata_path", "family", "vae", "trigger_word", "resolution", "init_lora", "train_text_encoder"),
                *("clip_skip", "max_token_length", "text_encoder_lr", "metadata", "dataset", "noise", "preview"),
                *("network.conv_rank", "network.conv_alpha", "network.factor"),
                *("network.dora_export", "network.dora_rank", "engine.fuse", "validation.data_dir"),
            }
        ),
        "training on pictures",
    ),
    TEXT: Mode(
        frozenset(
            {
                *("preset", "validation_data", "max_length", "validation.generate", "engine.shard", "engine.fuse"),
                *("text.template", "text.columns", "text.train_on", "text.packing"),
                *("preview.every", "preview.prompts", "init_lora"),
            }
        ),
        "training on conversations",
    ),
    LABELS: Mode(
        frozenset({"validation_data", "max_length", "text.columns", "text.labels"}),
        "training on labelled texts",
    ),
}
DATA = {IMAGE: "train_data_dir", TEXT: "train_data", LABELS: "train_data"}
"""The key of each mode's own training data. Either is read in the other modes too, as their own."""


def is_foreign(key: str, mode: str) -> bool:
    """Whether a key (`section.key`) belongs to other modes alone."""
    return not _has(mode, key) and _home(key) is not None


def refusal(key: str, mode: str) -> tuple[str, str]:
    """Problem and remedy for a key that is foreign to a mode."""
    home = _home(key)
    assert home is not None, f"{key} has a meaning everywhere, so in {mode} too"
    return f"is for {MODES[home].what}", f"leave it out, or write task_type: {home}"


def others_data(mode: str) -> str:
    """The key of the training data that is not this mode's."""
    return next(key for key in DATA.values() if key != DATA[mode])


def as_data(value: object, mode: str) -> object:
    """The training data under the other key as this mode's; raises ValueError for several folders of pictures."""
    if mode != IMAGE:
        return str(value)
    if isinstance(value, tuple):
        raise ValueError
    return Path(str(value))


def _has(mode: str, key: str) -> bool:
    return key in MODES[mode].keys or key.partition(".")[0] in MODES[mode].keys


def _home(key: str) -> str | None:
    """The first mode that has a key for itself."""
    return next((mode for mode in MODES if _has(mode, key)), None)
