"""Losses and gradient norms of a few steps of every family at toy size, in fp32 on the CPU: numbers that must not move.

`python tests/golden.py` writes `tests/golden/*.json` anew; do so only for a change that is meant to move them, and say
in its commit why. `tests/test_golden.py` compares.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import tiny
import torch
from accelerate import Accelerator

from patina.engine.capture import CapturedStep
from patina.engine.flat import flatten
from patina.engine.fused.blocks import fuse
from patina.engine.halves import Halves
from patina.engine.memory import again
from patina.engine.precision import Precision
from patina.engine.step import EagerStep
from patina.families import FAMILIES
from patina.family import narrow
from patina.loop import Plan, train
from patina.lora import inject
from patina.optim import make_optimizer, schedule
from patina.progress import Progress
from patina.task import Batch
from patina.tasks.image import ImageTask

FOLDER = Path(__file__).parent / "golden"
CPU = Precision(torch.device("cpu"), torch.float32)
STEPS, ACCUMULATE = 6, 2
RATE = 1e-3
SHAPES = ((4, 8, 8), (4, 8, 12))
"""Latents of two buckets, in turn."""
CAPTIONS = ("a red house, oil painting", "two fish", "", "a cat by the sea " * 4)


def measure(
    name: str,
    precision: Precision = CPU,
    steps: int = STEPS,
    *,
    native: bool = False,
    captured: bool = False,
    checkpointing: bool = False,
    fused: bool = False,
) -> dict[str, list[float]]:
    """Loss and gradient norm of each step, the denoiser and every text encoder trained.

    `native`: without autocast, with half-precision copies of the adapters; `captured`: on a GPU, played from
    recordings, where none may fail; `fused`: the denoiser's blocks are ours.
    """
    family, pipe = FAMILIES[name], tiny.PIPELINES[name]()
    targets = narrow(family, "full")
    for component in targets:
        getattr(pipe, component).to(precision.device, precision.dtype if native else torch.float32)
    for component, ends in targets.items():
        inject.adapt(getattr(pipe, component), ends, rank=4, alpha=4.0, seed=1)
    if checkpointing:
        pipe.unet.enable_gradient_checkpointing(again(drops=False))
    objective = family.objective(pipe.scheduler, 5.0).to(precision.device)
    task = ImageTask(family, pipe, objective, tuple(targets), seed=3, noise_offset=0.05)
    flats, rates = flatten(task.adapted()), dict.fromkeys(targets, RATE)
    halves = Halves(task.adapted(), flats, precision.dtype) if native else None
    optimizer = make_optimizer("adamw", flats, rates, 0.01)
    team = Accelerator(cpu=True)
    if fused:
        fuse(pipe.unet)
    eager = EagerStep(task, flats, optimizer, precision, team, 1.0, halves=halves)
    step_once = CapturedStep(eager, lambda batch: True, fail) if captured else eager
    seen: list[Progress] = []
    plan = Plan(steps, ACCUMULATE, 4, rates, schedule("cosine", steps, 1))
    train(task, batches(steps), step_once, plan, team, on_step=seen.append)
    return {"loss": [step.loss for step in seen], "grad_norm": [step.grad_norm for step in seen]}


def fail(text: str) -> None:
    raise AssertionError(text)


def batches(steps: int) -> Iterator[Batch]:
    """Uneven ones, two and one picture in turn."""
    generator = torch.Generator().manual_seed(4)
    for number in range(steps * ACCUMULATE):
        count, shape = 2 - number % 2, SHAPES[number // 2 % 2]
        yield {
            "mean": torch.randn(count, *shape, generator=generator),
            "std": 0.1 * torch.rand(count, *shape, generator=generator),
            "captions": [CAPTIONS[(number + place) % len(CAPTIONS)] for place in range(count)],
            "time_ids": torch.tensor([[64.0, 8.0 * shape[2], 0, 0, 64, 8 * shape[2]]] * count),
            "epoch": number // 4,
            "places": [2 * (number % 4) + place for place in range(count)],
        }


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for family in FAMILIES:
        (FOLDER / f"{family}.json").write_text(json.dumps(measure(family), indent=1) + "\n")
