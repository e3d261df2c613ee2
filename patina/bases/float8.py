"""Frozen linear layers in 8-bit floating point: half the memory of half precision, products on the units made for it.

The format is e4m3 (Micikevicius et al. 2022, arXiv:2209.05433): 3 bits of mantissa, so that a number is off by a
sixteenth of itself at most.
"""

# torch's stubs have another `backward` than its documentation: not ours to mend.
# pyright: reportIncompatibleMethodOverride=false

from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from patina.engine.fused.ops import unfit

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max
TINY = 1e-12
"""The largest number of a row of zeros, so that none divides by 0."""
ADA = (8, 9)
"""The first GPUs with units for it."""
BLOCK = 16
"""What the sizes of a matrix must be multiples of for them."""


class Rounded(NamedTuple):
    """Rows that are `numbers` * `scale`."""

    numbers: Tensor
    """[rows,in] e4m3."""
    scale: Tensor
    """[rows,1] fp32: what is largest in a row is the largest that the format has."""


class Float8Linear(nn.Linear):
    """A frozen linear layer, its weight [out,in] in e4m3 with one scale an output row; peft takes it for what it is."""

    scale: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        numbers, scale = rounded(layer.weight.detach())
        self.weight, self.bias = nn.Parameter(numbers, requires_grad=False), layer.bias
        self.register_buffer("scale", scale)

    def forward(self, input: Tensor) -> Tensor:
        """[...,in] -> [...,out], in the numbers of the input, or of autocast where it is on."""
        kind = input.device.type
        x = input.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else input
        y = Product.apply(x, self.weight, self.scale, torch.is_grad_enabled())
        return y if self.bias is None else y + self.bias.to(y.dtype)


class Product(torch.autograd.Function):
    """x [...,in] by a weight in e4m3. Backward multiplies by the weight in x's numbers: only forward is rounded."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, learns: bool) -> Tensor:
        """`learns`: see `for_units`."""
        ctx.save_for_backward(weight, scale)
        rows = x.reshape(-1, x.shape[-1])
        return product(rows, weight, scale, for_units(rows, learns)).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        weight, scale = ctx.saved_tensors
        return slope @ whole(weight, scale, slope.dtype), None, None, None


def rounded(matrix: Tensor) -> Rounded:
    """[rows,in] of any floating dtype to e4m3. What is not finite stays so."""
    if _on_kernels(matrix):
        from patina.engine.fused.eighths import round_rows  # deferred: Triton is not on every machine

        return Rounded(*round_rows(matrix.contiguous(), LARGEST, TINY))
    scale = matrix.abs().amax(-1, keepdim=True).float().clamp(min=TINY) / LARGEST
    return Rounded((matrix / scale).to(E4M3), scale)


def whole(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """[out,in] in `dtype`: numbers again for as long as a product takes."""
    if _on_kernels(weight):
        from patina.engine.fused.eighths import spell

        return spell(weight, scale, dtype)
    return weight.to(dtype).mul_(scale)


def for_units(rows: Tensor, learns: bool) -> Rounded | None:
    """Rows [N,in] as the units for e4m3 take them; None where the GPU has none, the width is odd or the run is fp32.

    None too where nothing `learns`: what is measured or drawn is rounded once, and what a model can do is found out by
    comparing outputs, of which rounding makes others wherever a sum was taken in another order.
    """
    halves = learns and rows.dtype in (torch.float16, torch.bfloat16)
    if not (rows.is_cuda and halves and rows.shape[1] % BLOCK == 0 and len(rows) and _has_units(rows.device)):
        return None
    return rounded(rows)


def product(rows: Tensor, weight: Tensor, scale: Tensor, told: Rounded | None) -> Tensor:
    """Rows [N,in] by a weight [out,in] in e4m3 -> [N,out]; `told` is what `for_units` made of them.

    On the units both are e4m3; elsewhere the weight alone is.
    """
    if told is None or len(weight) % BLOCK:
        return F.linear(rows, whole(weight, scale, rows.dtype))
    return _on_units(told, weight, scale).to(rows.dtype)


def _on_units(told: Rounded, weight: Tensor, scale: Tensor) -> Tensor:
    """bf16, the only numbers that every torch gives products with a scale a row in."""
    return torch._scaled_mm(told.numbers, weight.T, told.scale, scale.T, out_dtype=torch.bfloat16, use_fast_accum=True)


def _on_kernels(matrix: Tensor) -> bool:
    return matrix.is_cuda and _has_kernels(matrix.device)


@cache
def _has_kernels(device: torch.device) -> bool:
    """Whether Triton runs, and knows e4m3 on this GPU."""
    return torch.cuda.get_device_capability(device) >= ADA and unfit(device) is None


@cache
def _has_units(device: torch.device) -> bool:
    """Whether this GPU and this build of torch multiply so; asked by doing it, as not every build has every kernel."""
    if torch.cuda.get_device_capability(device) < ADA:
        return False
    told = rounded(torch.ones(BLOCK, BLOCK, device=device))
    try:
        _on_units(told, *told)
    except RuntimeError:
        return False
    return True
