"""Optimizers and learning-rate schedules, by the names that a config calls them."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

Groups = list[dict[str, object]]


def make_optimizer(
    name: str, flats: Mapping[str, nn.Parameter], rates: Mapping[str, float], weight_decay: float
) -> Optimizer:
    """An optimizer of OPTIMIZERS with one group a flat weight, each with its own learning rate."""
    groups: Groups = [{"params": [flat], "lr": rates[name]} for name, flat in flats.items()]
    return OPTIMIZERS[name](groups, weight_decay)


def _adamw(groups: Groups, weight_decay: float) -> Optimizer:
    return torch.optim.AdamW(groups, weight_decay=weight_decay)


def _adamw8bit(groups: Groups, weight_decay: float) -> Optimizer:
    """AdamW with block-wise 8-bit moments (Dettmers et al. 2022, arXiv:2110.02861); on the CPU too."""
    from bitsandbytes.optim import AdamW8bit  # deferred: it takes seconds to import

    return AdamW8bit(groups, weight_decay=weight_decay)


OPTIMIZERS: dict[str, Callable[[Groups, float], Optimizer]] = {"adamw": _adamw, "adamw8bit": _adamw8bit}


def advance(optimizer: Any) -> None:
    """Take an optimizer's step. bitsandbytes' own would wait for the GPU after each group; see ADVANCES."""
    ADVANCES.get(type(optimizer).__name__, _step)(optimizer)


def _step(optimizer: Any) -> None:
    optimizer.step()


def _advance_8bit(optimizer: Any) -> None:
    """What its `step` does once its first has made the state, but for the waiting."""
    if not optimizer.initialized:
        optimizer.step()
        return
    for place, group in enumerate(optimizer.param_groups):
        for number, flat in enumerate(group["params"]):
            optimizer.update_step(group, flat, place, number)


ADVANCES: dict[str, Callable[[Any], None]] = {"AdamW8bit": _advance_8bit}
"""Optimizers whose step is taken otherwise than by their `step`, by their class."""


def schedule(name: str, steps: int, warmup: int) -> Callable[[int], float]:
    """The learning rate's factor at each step 1 .. `steps`: a line up over `warmup` steps, then SCHEDULES[name]."""
    decay = SCHEDULES[name]

    def factor(step: int) -> float:
        if step <= warmup:
            return step / (warmup + 1)
        return decay((step - 1 - warmup) / max(1, steps - warmup))

    return factor


SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: 1 - done,
    "constant": lambda done: 1.0,
}
"""Share of the steps after the warm-up that are done (0 at the first) -> factor."""
