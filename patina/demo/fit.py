"""Training a small model from scratch: one captured step, AdamW, a cosine schedule, a moving average.

This is how the embedded models were made. It has nothing of the product's loop (no adapters, no resume, no files):
data and weights fit on the device, and the whole step is one CUDA graph, because a model this small
would otherwise wait for Python nine tenths of the time.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from tqdm import trange

AVERAGE_EVERY = 10


@dataclass(frozen=True)
class Round:
    """One pass of training with a cosine schedule of its own; a model is taught in one or several."""

    steps: int
    batch: int
    learning_rate: float
    scenes: int
    seed: int
    """Of the scenes."""

    def tried(self) -> "Round":
        """The same with next to nothing to do, to try the code on a processor."""
        return replace(self, steps=2, batch=4, scenes=8)


def fit(
    loss: Callable[[], Tensor],
    modules: Iterable[nn.Module],
    plan: Round,
    *,
    name: str,
    warmup: int = 300,
    decay: float = 0.98,
) -> None:
    """Minimise `loss()`, which draws its own batch on the device, and leave the averaged weights in the modules.

    `decay` is the moving average's, applied every AVERAGE_EVERY steps.
    """
    params = [p for module in modules for p in module.parameters() if p.requires_grad]
    device = params[0].device
    rate = torch.tensor(0.0, device=device)
    cuda = device.type == "cuda"
    optimizer = torch.optim.AdamW(params, lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True, capturable=cuda)
    smooth = torch.zeros((), device=device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        smooth.lerp_(value.detach(), 0.01)

    replay = _captured(step) if cuda else step
    average = [p.detach().clone() for p in params]
    bar = trange(plan.steps, desc=name, mininterval=5)
    for index in bar:
        cosine = 0.5 * (1 + math.cos(math.pi * index / plan.steps))
        rate.fill_(plan.learning_rate * min(1, (index + 1) / warmup) * cosine)
        replay()
        if index % AVERAGE_EVERY == 0:
            torch._foreach_lerp_(average, list[Tensor](params), 1 - min(decay, (1 + index) / (100 + index)))
        if index % 500 == 499:
            bar.set_postfix(loss=f"{smooth.item():.4f}")
    with torch.no_grad():
        torch._foreach_copy_(list[Tensor](params), average)


def in_bfloat16(module: nn.Module) -> Callable[..., Any]:
    """The module's forward on bfloat16 copies of its float32 weights; gradients reach the weights themselves.

    Unlike autocast it also norms in bfloat16 and keeps convolutions in channels-last order: half the traffic. On a GPU
    it is compiled, which takes about a minute and fuses what lies between the products.
    """

    def forward(*inputs: Any, **options: Any) -> Any:
        return functional_call(module, {name: _halved(p) for name, p in module.named_parameters()}, inputs, options)

    return forward


def _halved(parameter: Tensor) -> Tensor:
    order = torch.channels_last if parameter.ndim == 4 else torch.contiguous_format
    return parameter.to(torch.bfloat16, memory_format=order)


def _captured(step: Callable[[], None]) -> Callable[[], None]:
    """Record the step once as a CUDA graph; calling the result replays it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
