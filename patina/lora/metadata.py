"""The texts in a LoRA file's header: sd-scripts' `ss_` entries, which web UIs show, and modelspec 1.0.1."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, Literal

from patina.family import Family
from patina.objective import EPSILON, VELOCITY

MODELSPEC = "1.0.1"
TAG_BYTES = 384 * 1024
"""What tags may take of a header. ComfyUI shows metadata of headers up to 1 MiB; tensors take about 130 bytes each."""
DATES = ("ss_training_started_at", "ss_training_finished_at", "modelspec.date")
PREDICTIONS = {EPSILON: "epsilon", VELOCITY: "v"}

MINIMUM = (
    "ss_v2",
    "ss_base_model_version",
    "ss_network_module",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_network_args",
    "modelspec.sai_model_spec",
    "modelspec.architecture",
    "modelspec.implementation",
    "modelspec.prediction_type",
)
"""What web UIs tell the family by; sd-scripts keeps these too where it is told to write no metadata."""

Level = Literal["full", "public", "none"]
Tags = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, kw_only=True)
class TrainingFacts:
    """What is known of a run: each field is written as the `ss_` entry of its name, None as no entry.

    The names and meanings are sd-scripts' (`train_network.py`). Rates are per step, sizes in pixels, times in Unix
    seconds. Mappings become JSON.
    """

    output_name: str
    """Name that the web UI's prompt uses; without the characters : > = and comma, which end it there."""
    network_dim: int
    network_alpha: float
    training_started_at: float
    training_finished_at: float | None = None
    session_id: str | None = None
    training_comment: str | None = None
    sd_model_name: str | None = None
    sd_model_hash: str | None = None
    """First 8 hex digits of the SHA-256 of the base file's bytes 0x100000 to 0x110000."""
    new_sd_model_hash: str | None = None
    """SHA-256 of the whole base file."""

    network_module: str = "networks.lora"
    network_dropout: float | None = None
    network_args: Mapping[str, Any] | None = None
    scale_weight_norms: float | None = None

    learning_rate: float | None = None
    unet_lr: float | None = None
    text_encoder_lr: float | None = None
    lr_scheduler: str | None = None
    lr_warmup_steps: int | None = None
    optimizer: str | None = None
    max_grad_norm: float | None = None
    max_train_steps: int | None = None
    num_epochs: int | None = None
    epoch: int | None = None
    steps: int | None = None
    num_train_images: int | None = None
    """Repeats included."""
    num_reg_images: int | None = None
    """Regularisation pictures, the repeats of their folders included."""
    num_validation_images: int | None = None
    num_batches_per_epoch: int | None = None
    batch_size_per_device: int | None = None
    total_batch_size: int | None = None
    gradient_accumulation_steps: int | None = None
    gradient_checkpointing: bool | None = None
    mixed_precision: str | None = None
    full_fp16: bool | None = None
    cache_latents: bool | None = None
    clip_skip: int | None = None
    max_token_length: int | None = None
    seed: int | None = None

    noise_offset: float | None = None
    min_snr_gamma: float | None = None
    zero_terminal_snr: bool | None = None
    loss_type: str | None = None
    prior_loss_weight: float | None = None
    caption_dropout_rate: float | None = None
    caption_tag_dropout_rate: float | None = None
    caption_dropout_every_n_epochs: int | None = None

    resolution: tuple[int, int] | None = None
    """Width and height."""
    enable_bucket: bool | None = None
    bucket_no_upscale: bool | None = None
    min_bucket_reso: int | None = None
    max_bucket_reso: int | None = None
    color_aug: bool | None = None
    flip_aug: bool | None = None
    random_crop: bool | None = None
    shuffle_caption: bool | None = None
    keep_tokens: int | None = None
    bucket_info: Mapping[str, Any] | None = None
    """See `bucket_info`."""
    dataset_dirs: Mapping[str, Mapping[str, int]] | None = None
    """folder -> {"n_repeats": n, "img_count": pictures in it}."""
    reg_dataset_dirs: Mapping[str, Mapping[str, int]] | None = None
    """The same of folders with regularisation pictures."""
    tag_frequency: Tags | None = None
    """See `tag_frequency`; the rarest tags are left out of a file where all would take too much of the header."""


@dataclass(frozen=True, kw_only=True)
class Modelspec:
    """What the author says of the file, and what it predicts: each field is the `modelspec.` entry of its name."""

    prediction_type: str = "epsilon"
    """`epsilon` or `v_prediction`, as the base's scheduler calls them."""
    title: str | None = None
    """The output name when left out."""
    author: str | None = None
    description: str | None = None
    license: str | None = None
    tags: str | None = None
    trigger_phrase: str | None = None
    usage_hint: str | None = None
    implementation_version: str | None = None
    """The trainer and its version, `patina/0.1.0`."""


def build(facts: TrainingFacts, family: Family, spec: Modelspec | None = None) -> dict[str, str]:
    """A header's entries, all texts; the dates come last, so that equal runs give files that differ only there."""
    spec = spec or Modelspec()
    entries = dict(family.metadata)
    if spec.prediction_type == VELOCITY:
        entries |= family.velocity_metadata
    entries |= {f"ss_{field.name}": _text(getattr(facts, field.name)) for field in fields(facts)}
    entries["ss_network_args"] = _text(facts.network_args or {})
    entries["ss_tag_frequency"] = _text(capped(facts.tag_frequency) if facts.tag_frequency else None)
    entries |= {f"modelspec.{field.name}": _text(getattr(spec, field.name)) for field in fields(spec)}
    width, height = facts.resolution or (family.resolution, family.resolution)
    seconds = facts.training_finished_at or facts.training_started_at
    entries |= {
        "modelspec.sai_model_spec": MODELSPEC,
        "modelspec.title": spec.title or facts.output_name,
        "modelspec.prediction_type": PREDICTIONS[spec.prediction_type],
        "modelspec.resolution": f"{width}x{height}",
        "modelspec.date": datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds"),
    }
    dates = {key: entries.pop(key) for key in DATES}
    return {key: text for key, text in (entries | dates).items() if text}


def kept(entries: Mapping[str, str], level: Level) -> dict[str, str]:
    """Of `build`'s entries those that a file of this level has: `none` keeps what loaders need, the others all.

    What `full` has over `public` are whole paths: the facts are told to have them, or not (see `patina.facts`).
    """
    return {key: text for key, text in entries.items() if level != "none" or key in MINIMUM}


def tag_frequency(name: str, repeats: int, captions: Iterable[str]) -> dict[str, dict[str, int]]:
    """Count the captions' tags (parted at commas, in lower case) under `<repeats>_<name>`.

    `name` is the trigger word or else the folder: SD.Next and ComfyUI offer it as the word to write in a prompt.
    """
    tags = (tag.strip().lower() for caption in captions for tag in caption.split(","))
    return {f"{repeats}_{name}": dict(Counter(tag for tag in tags if tag))}


def bucket_info(counts: Mapping[tuple[int, int], int]) -> dict[str, Any]:
    """(width, height) -> pictures, repeats included, as the `ss_bucket_info` that the web UI's dialog lists."""
    rows = sorted(counts.items())
    return {
        "buckets": {str(i): {"resolution": list(size), "count": count} for i, (size, count) in enumerate(rows)},
        "mean_img_ar_error": 0,
    }


def capped(frequency: Tags, limit: int = TAG_BYTES) -> Tags:
    """The most frequent tags of all folders, as many as `limit` bytes of a header hold; every folder keeps its name."""
    ranked = [(count, folder, tag) for folder, tags in frequency.items() for tag, count in tags.items()]
    ranked.sort(key=lambda row: (-row[0], row[1], row[2]))
    kept: dict[str, dict[str, int]] = {folder: {} for folder in frequency}
    left = limit - _header_bytes(kept)
    for count, folder, tag in ranked:
        left -= _header_bytes({tag: count})
        if left < 0:
            break
        kept[folder][tag] = count
    return kept


def _header_bytes(value: Mapping[str, Any]) -> int:
    """What a mapping takes as JSON inside the header's JSON, where every quote and backslash is escaped again."""
    return len(json.dumps(json.dumps(value)))


def _text(value: object) -> str:
    """As sd-scripts writes it: JSON for mappings, `True` and `False`, decimals; empty for None."""
    if value is None:
        return ""
    return json.dumps(value) if isinstance(value, Mapping) else str(value)
