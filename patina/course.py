"""Where a run begins, how far it goes, and what takes its steps: what both modes derive alike from the config."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from accelerate import Accelerator
from torch import nn

from patina import checkpoint
from patina.config import Config
from patina.engine.average import Average
from patina.engine.capture import CapturedStep
from patina.engine.flat import Groups, flatten
from patina.engine.halves import Halves
from patina.engine.ladder import Ladder, Rung
from patina.engine.precision import Precision
from patina.engine.resting import RESTING, can_rest, rest
from patina.engine.step import EagerStep
from patina.errors import PatinaError
from patina.loop import Plan
from patina.lora.norms import limit
from patina.optim import advance, make_optimizer, schedule
from patina.task import Task
from patina.watch.console import say


def to_resume(config: Config) -> Path | None:
    """The checkpoint to go on from; an earlier run's files are never written over unasked."""
    folder = config.output_dir / "checkpoints"
    if config.resume == "auto":
        return checkpoint.newest_whole(folder, say)
    if config.resume is not None:
        return Path(config.resume)
    if latest := checkpoint.newest(folder):
        raise PatinaError(
            f"output_dir: {config.output_dir} holds an earlier run, saved at {latest.name}; "
            "write resume: auto to go on with it, or another output_dir to train anew"
        )
    return None


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


def measures(config: Config, plan: Plan, step: int) -> bool:
    """Whether what is held out is measured after a step."""
    every = config.validation.every or config.save_steps
    return step == plan.steps or (every > 0 and step % every == 0)


def eager_step(
    config: Config,
    task: Task,
    plan: Plan,
    groups: Groups,
    precision: Precision,
    team: Accelerator,
    *,
    native: bool = False,
) -> EagerStep:
    """The step over the task's adapters, laid into flat groups; `native`: they compute in half precision uncast."""
    modules, longest = task.adapted(), config.network.max_norm
    flats = flatten(modules, groups)
    optimizer = make_optimizer(config.optimizer, flats, plan.rates, config.weight_decay)

    def step() -> None:
        advance(optimizer)
        if longest:
            limit(list(modules.values()), longest)

    halves = Halves(modules, flats, precision.dtype) if native else None
    return EagerStep(
        task,
        flats,
        optimizer,
        precision,
        team,
        config.max_grad_norm,
        advance=step,
        halves=halves,
        average=Average(flats, config.ema_decay) if config.ema_decay else None,
        skip=config.engine.skip_bad_steps,
        say=say,
    )


def ladder(
    config: Config,
    step: EagerStep | CapturedStep,
    rungs: list[Rung],
    advice: str,
    begin_anew: Callable[[], object] = lambda: None,
    end: Callable[[], object] = lambda: None,
    *,
    blocks: Sequence[nn.Module] = (),
) -> Ladder:
    """The step with the ways down that the config leaves it; see `Ladder`.

    `blocks`: those that gradient checkpointing computes again, whose weights may rest elsewhere at last.
    """
    goes_down = config.engine.memory == "auto" and not config.engine.shard  # which all processes would have to do alike

    def rested() -> None:
        if isinstance(step, CapturedStep):
            step.stay_eager()
        rest(blocks)

    last = Rung(RESTING, rested) if can_rest(blocks) else None
    return Ladder(step, rungs if goes_down else None, advice, say, begin_anew, end, last)
