"""A run as the header of its LoRA file tells it: the config, in sd-scripts' words."""

import math
import uuid
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from patina.config import Config
from patina.configdata import Dataset
from patina.data.dataset import Item, bucket_counts, parted
from patina.data.folders import NAMED
from patina.loop import Plan
from patina.lora import metadata
from patina.lora.plan import conv_size, file_alpha, file_rank

Folders = dict[tuple[Path, int], list[Item]]
"""Folder and repeats -> its pictures."""
LYCORIS = {"dora": "locon"}
"""What LyCORIS calls an algorithm where we call it otherwise."""


def training_facts(config: Config, plan: Plan, items: Sequence[Item], began: float) -> metadata.TrainingFacts:
    """What is known at the start; `began` in Unix seconds."""
    trained, prior = parted(items)
    return metadata.TrainingFacts(
        output_name=config.name,
        **_network(config),
        training_started_at=round(began),
        session_id=str(uuid.uuid4().int % 2**32),
        sd_model_name=config.base_model if config.metadata == "full" else Path(config.base_model).name,
        learning_rate=config.learning_rate,
        unet_lr=config.learning_rate,
        text_encoder_lr=config.te_learning_rate if any(g.startswith("text_encoder") for g in plan.rates) else None,
        lr_scheduler=config.scheduler,
        lr_warmup_steps=config.warmup_steps,
        optimizer=config.optimizer,
        max_grad_norm=config.max_grad_norm,
        max_train_steps=plan.steps,
        num_epochs=math.ceil(plan.steps * plan.accumulate / plan.batches_per_epoch),
        num_train_images=sum(item.repeats for item in trained),
        num_reg_images=sum(item.repeats for item in prior),
        num_batches_per_epoch=plan.batches_per_epoch,
        batch_size_per_device=config.batch_size,
        total_batch_size=config.batch_size * plan.accumulate,
        gradient_accumulation_steps=plan.accumulate,
        gradient_checkpointing=config.gradient_checkpointing,
        mixed_precision={"fp32": "no"}.get(config.mixed_precision, config.mixed_precision),
        cache_latents=True,
        clip_skip=config.clip_skip,
        max_token_length=config.max_token_length,
        seed=config.seed,
        noise_offset=config.noise.noise_offset or None,
        min_snr_gamma=config.noise.min_snr_gamma,
        zero_terminal_snr=config.noise.zero_terminal_snr,
        loss_type="l2",
        prior_loss_weight=config.dataset.reg_weight if prior else None,
        resolution=(config.resolution, config.resolution),
        enable_bucket=config.dataset.buckets,
        bucket_no_upscale=not config.dataset.upscale,
        **_rules([one.rules for one in config.picture_sets]),
        bucket_info=metadata.bucket_info(bucket_counts(items)),
        **_folders(config, trained),
        reg_dataset_dirs=_directories(config, _by_folder(prior)) if prior else None,
    )


def _rules(of_folders: Sequence[Dataset]) -> dict[str, Any]:
    """How pictures and captions are changed: the most of it that any folder has, for which the header has one place."""
    return {
        "flip_aug": any(rules.flip for rules in of_folders),
        "color_aug": any(rules.colour > 0 for rules in of_folders),
        "random_crop": any(rules.crop == "random" for rules in of_folders),
        "shuffle_caption": any(rules.shuffle_tags for rules in of_folders),
        "keep_tokens": max(rules.keep_tags for rules in of_folders),
        "caption_tag_dropout_rate": max(rules.tag_dropout for rules in of_folders) or None,
        "caption_dropout_rate": max(rules.caption_dropout for rules in of_folders) or None,
        "caption_dropout_every_n_epochs": max(rules.caption_dropout_every_epochs for rules in of_folders) or None,
    }


def _folders(config: Config, items: Sequence[Item]) -> dict[str, Any]:
    """What is told of each folder of pictures to train on."""
    by_folder = _by_folder(items)
    triggers = Counter(held[0].wording.trigger for held in by_folder.values())
    tags = {}
    for (folder, repeats), held in by_folder.items():
        word = NAMED.sub(r"\2", folder.name)  # as sd-scripts has it: the repeats are in the name that is told
        trigger = held[0].wording.trigger
        name = trigger if trigger and triggers[trigger] == 1 else word
        tags |= metadata.tag_frequency(name, repeats, [item.plain for item in held])
    return {"dataset_dirs": _directories(config, by_folder), "tag_frequency": tags}


def _by_folder(items: Sequence[Item]) -> Folders:
    found: Folders = {}
    for item in items:
        found.setdefault((item.folder.resolve(), item.repeats), []).append(item)
    return found


def _directories(config: Config, by_folder: Folders) -> dict[str, dict[str, int]]:
    """Each folder by its own name alone unless all is told, for paths hold names."""
    found: dict[str, dict[str, int]] = {}
    for (folder, repeats), held in by_folder.items():
        name = str(folder) if config.metadata == "full" else folder.name
        again = sum(known.partition(" (")[0] == name for known in found)
        found[f"{name} ({again + 1})" if again else name] = {"n_repeats": repeats, "img_count": len(held)}
    return found


def _network(config: Config) -> dict[str, Any]:
    """What was trained, as sd-scripts calls it where its own module reads the file, and else as LyCORIS does."""
    network = config.network
    ours = network.algo in ("lora", "locon") or network.dora_export == "baked"
    conv_rank, conv_alpha = conv_size(network, config.lora_rank, config.lora_alpha)
    args = {
        "algo": None if ours else LYCORIS.get(network.algo, network.algo),
        "conv_dim": conv_rank if network.convolutions else None,
        "conv_alpha": conv_alpha if network.convolutions else None,
        "factor": network.factor,
        "dora_wd": True if network.algo == "dora" and not ours else None,
        "wd_on_output": False if network.algo == "dora" and not ours else None,
        "rank_dropout": network.rank_dropout or None,
        "module_dropout": network.module_dropout or None,
        "rs_lora": network.rslora or None,
        "loraplus_lr_ratio": network.loraplus_ratio,
    }
    return {
        "network_module": "networks.lora" if ours else "lycoris.kohya",
        "network_dim": file_rank(network, config.lora_rank),
        "network_alpha": file_alpha(network, config.lora_rank, config.alpha),
        "network_dropout": network.dropout or None,
        "network_args": {key: str(value) for key, value in args.items() if value is not None},
        "scale_weight_norms": network.max_norm,
    }
