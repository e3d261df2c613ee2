"""How fast a chip could be at most: the operations that a picture needs, and how many a second it does."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from patina.bench.bases import empty_pipeline
from patina.clip import PLAIN
from patina.family import Family

SIDES = {"cuda": (8192, torch.float16), "cpu": (1024, torch.float32)}
"""Device -> edge and dtype of the matrices whose product is timed."""
ROUNDS = 10


def training_flops(family: Family, resolution: int, *, text: bool, narrow: bool) -> int:
    """Floating-point operations of one square picture in one step: forward, and backward to the inputs alone.

    The base's weights need no gradient; the adapters' own products are a few hundredths and are left out, as is what
    gradient checkpointing computes a second time: none of it is needed. With `text` the text encoders are passed
    both ways as well.
    """
    pipe = empty_pipeline(family, narrow=narrow)
    unet = getattr(pipe, family.denoiser).requires_grad_(False)
    for name in family.text_encoders:
        getattr(pipe, name).requires_grad_(False).get_input_embeddings().requires_grad_(text)
    edge = resolution // pipe.vae_scale_factor
    with torch.device("meta"):
        x = torch.empty(1, unet.config.in_channels, edge, edge, requires_grad=True)
        t, time_ids = torch.empty(1), torch.empty(1, 6)
    said = {}
    reading = counted(lambda: said.update(family.encode(pipe, [""], PLAIN)))
    cond = {**said, "time_ids": time_ids}
    return counted(lambda: family.predict(pipe, x, t, cond).sum().backward()) + text * reading


def counted(work: Callable[[], object]) -> int:
    """Floating-point operations of what `work` calls: two for each product that is added up."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def matrix_rate(device: torch.device) -> float:
    """Floating-point operations a second in a large product of random matrices: the mean of ten, after three."""
    edge, dtype = SIDES[device.type]
    one, other = (torch.randn(edge, edge, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        torch.mm(one, other)
    _wait(device)
    began = time.monotonic()
    for _ in range(ROUNDS):
        torch.mm(one, other)
    _wait(device)
    return ROUNDS * 2 * edge**3 / (time.monotonic() - began)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
