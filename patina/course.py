"""Where a run begins, how far it goes and how fast: what both modes derive alike from the config."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from patina import checkpoint
from patina.config import Config
from patina.errors import PatinaError
from patina.loop import Plan
from patina.optim import schedule


def to_resume(config: Config) -> Path | None:
    """The checkpoint to go on from; an earlier run's files are never written over unasked."""
    folder = config.output_dir / "checkpoints"
    latest = checkpoint.newest(folder)
    if config.resume not in (None, "auto"):
        return Path(config.resume)
    if config.resume is None and latest is not None:
        raise PatinaError(
            f"output_dir: {config.output_dir} holds an earlier run, saved at {latest.name}; "
            "write resume: auto to go on with it, or another output_dir to train anew"
        )
    return latest


def plan_run(config: Config, rates: Mapping[str, float], per_epoch: int, processes: int) -> Plan:
    """The course of a run with `per_epoch` batches an epoch. Raises PatinaError where the warm-up does not fit."""
    width = config.gradient_accumulation_steps * processes
    steps = config.max_steps or math.ceil(per_epoch * config.epochs / width)
    if config.warmup_steps >= steps:
        raise PatinaError(
            f"warmup_steps: {config.warmup_steps} does not fit into this run of {steps} steps; "
            f"write warmup_steps: {steps // 10}"
        )
    factor = schedule(config.scheduler, steps, config.warmup_steps)
    return Plan(steps, config.gradient_accumulation_steps, per_epoch, rates, factor)
