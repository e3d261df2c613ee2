"""What a run must share with the checkpoint that it goes on from, so that the two halves are one training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patina.errors import PatinaError
from patina.objective import ZERO_TERMINAL

if TYPE_CHECKING:
    from patina.engine.scale import LossScale
    from patina.tasks.image import ImageTask

SHARED = (
    "lora_rank",
    "lora_target",
    "batch_size",
    "gradient_accumulation_steps",
    "optimizer",
    "ema_decay",
    "seed",
    "task_type",
    "quantize",
)
PICTURES = (
    "trigger_word",
    "resolution",
    "max_token_length",
    *("dataset.buckets", "dataset.upscale"),
    "dataset.repeats",
    *("dataset.flip", "dataset.crop", "dataset.colour", "dataset.variants"),
    *("dataset.masks", "dataset.unmasked_weight", "dataset.reg_weight"),
    *("dataset.shuffle_tags", "dataset.keep_tags", "dataset.tag_dropout", "dataset.caption_dropout"),
    *("dataset.caption_dropout_every_epochs", "dataset.caption_lines", "dataset.wildcards"),
    "dataset.caption_weights",
    "validation.split",
    "noise.min_snr_gamma",
    "noise.noise_offset",
)
"""Keys that decide what is trained on, how it is seen, or what the state is of. The others may change: where things
are kept and shown, how far the run goes and how fast, and in which numbers it computes."""
PATHS = ("dir", "metadata_path")
"""Keys of a subset that may change, as a folder may move."""
EXPORTED = ("dora_export", "dora_rank")
"""Keys of the network section that only the files are made by."""


def shared(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint notes of any run by the keys of its config, `given` as it is written.

    Bases are told apart by name, so that a folder may move.
    """
    network = {f"network.{key}": value for key, value in given["network"].items() if key not in EXPORTED}
    return {**{key: _at(given, key) for key in SHARED}, **network, "base_model": Path(given["base_model"]).name}


def of_pictures(given: Mapping[str, Any], task: ImageTask) -> dict[str, Any]:
    """What it notes besides of a run on pictures, by what an open key came to."""
    scheduler = task.pipe.scheduler.config
    return {
        **{key: _at(given, key) for key in PICTURES},
        "family": task.family.name,
        "vae": Path(given["vae"]).name if given["vae"] else None,
        "train_text_encoder": task.trains_text,
        "clip_skip": given["clip_skip"] or 1,
        "noise.prediction": scheduler["prediction_type"],
        "noise.zero_terminal_snr": bool(scheduler.get(ZERO_TERMINAL)),
    }


def fingerprint(rows: Iterable[bytes]) -> str:
    """The first half of a sha256 of a set's rows, in whatever order they come."""
    digests = sorted(hashlib.sha256(row).digest() for row in rows)
    return hashlib.sha256(b"".join(digests)).hexdigest()[:32]


def compare(path: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Raise PatinaError where a checkpoint's settings are others than this run's, naming every one and both values.

    Returns the keys of which the checkpoint, an earlier version's, says nothing.
    """
    differing = [
        f"{key} was {_shown(saved[key])} and is {_shown(value)}"
        for key, value in now.items()
        if key in saved and saved[key] != value
    ]
    if differing:
        raise PatinaError(
            f"resume: {path} is of another training: {'; '.join(differing)}. Write the earlier values to go on, or "
            "train anew in another output_dir"
        )
    return [key for key in now if key not in saved]


def restore_scale(scaler: LossScale, saved: Mapping[str, Any]) -> None:
    """Put an fp16 run's loss scale back; a checkpoint of other numbers has none, and the scale then starts anew."""
    if saved:
        scaler.load_state_dict(dict(saved))


def _at(given: Mapping[str, Any], key: str) -> Any:
    section, _, name = key.rpartition(".")
    return given[section][name] if section else given[name]


def _shown(value: object) -> str:
    """As the config writes it."""
    if value is None or value == []:
        return "empty"
    return str(value).lower() if isinstance(value, bool) else str(value)
