"""A run as the header of its LoRA file tells it: the config, in sd-scripts' words."""

import math
import uuid
from collections.abc import Sequence
from pathlib import Path

from patina.config import Config
from patina.data.dataset import Item, bucket_counts
from patina.loop import Plan
from patina.lora import metadata


def training_facts(config: Config, plan: Plan, items: Sequence[Item], began: float) -> metadata.TrainingFacts:
    """What is known at the start; `began` in Unix seconds."""
    captions = [item.caption for item in items]
    name = config.trigger_word or config.train_data_dir.resolve().name
    counts = bucket_counts(items)
    return metadata.TrainingFacts(
        output_name=config.name,
        network_dim=config.lora_rank,
        network_alpha=config.alpha,
        training_started_at=round(began),
        session_id=str(uuid.uuid4().int % 2**32),
        sd_model_name=config.base_model if config.metadata == "full" else Path(config.base_model).name,
        learning_rate=config.learning_rate,
        unet_lr=config.learning_rate,
        text_encoder_lr=plan.rates.get("text_encoder"),
        lr_scheduler=config.scheduler,
        lr_warmup_steps=config.warmup_steps,
        optimizer=config.optimizer,
        max_grad_norm=config.max_grad_norm,
        max_train_steps=plan.steps,
        num_epochs=math.ceil(plan.steps * plan.accumulate / plan.batches_per_epoch),
        num_train_images=sum(counts.values()),
        num_reg_images=0,
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
        resolution=(config.resolution, config.resolution),
        enable_bucket=config.dataset.buckets,
        bucket_info=metadata.bucket_info(counts),
        dataset_dirs={_folder(config): {"n_repeats": config.dataset.repeats, "img_count": len(items)}},
        tag_frequency=metadata.tag_frequency(name, config.dataset.repeats, captions),
    )


def _folder(config: Config) -> str:
    """The pictures' folder as the header names it: by its own name alone unless all is told, for paths hold names."""
    folder = config.train_data_dir.resolve()
    return str(folder) if config.metadata == "full" else folder.name
