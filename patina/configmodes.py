"""Which keys of a config belong to pictures and which to texts, and how a run of the one takes the other's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

IMAGE, TEXT = "image", "text-generation"


class Mode(NamedTuple):
    """What one value of `task_type` has for itself."""

    keys: frozenset[str]
    """Keys and whole sections that have no meaning in the other mode."""
    what: str
    """What such a key is for."""


MODES: Mapping[str, Mode] = {
    IMAGE: Mode(
        frozenset(
            {
                *("metadata_path", "family", "vae", "trigger_word", "resolution", "train_text_encoder"),
                *("clip_skip", "max_token_length", "text_encoder_lr", "metadata", "dataset", "noise"),
                *("preview.negative_prompt", "preview.steps", "preview.guidance", "preview.seed"),
                *("network.conv_rank", "network.conv_alpha", "network.factor"),
                *("network.dora_export", "network.dora_rank", "engine.fuse", "validation.data_dir"),
            }
        ),
        "training on pictures",
    ),
    TEXT: Mode(
        frozenset({"validation_data", "max_length", "text", "validation.generate", "engine.shard"}),
        "training on conversations",
    ),
}
OTHER = {IMAGE: TEXT, TEXT: IMAGE}
DATA = {IMAGE: "train_data_dir", TEXT: "train_data"}
"""The key of each mode's own training data. Either is read in the other mode too, as its own."""


def is_foreign(key: str, mode: str) -> bool:
    """Whether a key (`section.key`) belongs to the other mode alone."""
    keys = MODES[OTHER[mode]].keys
    return key in keys or key.partition(".")[0] in keys


def refusal(mode: str) -> tuple[str, str]:
    """Problem and remedy for a key of the other mode."""
    other = OTHER[mode]
    return f"is for {MODES[other].what}", f"leave it out, or write task_type: {other}"


def as_data(value: object, mode: str) -> object:
    """The other mode's training data as this mode's; raises ValueError for several folders of pictures."""
    if mode == TEXT:
        return str(value)
    if isinstance(value, tuple):
        raise ValueError
    return Path(str(value))
