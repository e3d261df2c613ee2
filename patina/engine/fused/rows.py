"""What a transformer block does to each row: a sum's layer normalisation, and the gated activation.

By the inputs alone: the weights are frozen. Sums are fp32.
"""

# torch's stubs have another `backward` than its documentation, and Triton's know no launch options: not ours to mend.
# pyright: reportCallIssue=false, reportArgumentType=false, reportIncompatibleMethodOverride=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable


class AddNorm(torch.autograd.Function):
    """`norm(a + b)` and `a + b`."""

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor | None, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """a and b [...,C] contiguous; weight and bias [C]."""
        assert not weight.requires_grad, "the base is frozen"
        width = a.shape[-1]
        rows, block = a.numel() // width, triton.next_power_of_2(width)
        added = b is not None
        y, whole = torch.empty_like(a), torch.empty_like(a) if added else a
        stats = a.new_empty((rows, 2), dtype=torch.float32)
        b = b.contiguous() if added else a
        _add_norm[(rows,)](a, b, weight, bias, y, whole, stats, width, eps, added, block, num_warps=warps(block))
        ctx.save_for_backward(whole, weight, stats)
        ctx.set_materialize_grads(False)  # where the sum is of no other use, no zeros are to be added
        ctx.added = added
        return y, whole if added else a.view_as(a)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, beside: Tensor | None) -> tuple[Tensor | None, ...]:
        whole, weight, stats = ctx.saved_tensors
        width = whole.shape[-1]
        rows, block = whole.numel() // width, triton.next_power_of_2(width)
        dy, dx = dy.contiguous(), torch.empty_like(whole)
        also = dy if beside is None else beside.contiguous()
        inputs = (whole, weight, stats, dy, also, dx, width, beside is not None, block)
        _add_norm_back[(rows,)](*inputs, num_warps=warps(block))
        return dx, dx if ctx.added else None, None, None, None


class Gated(torch.autograd.Function):
    """[...,2C] -> first half * gelu(second half), exact gelu (Shazeer 2020, arXiv:2002.05202)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """x contiguous."""
        width = x.shape[-1] // 2
        y = x.new_empty((*x.shape[:-1], width))
        _gated[(triton.cdiv(y.numel(), 1024),)](x, y, y.numel(), width, 1024)
        ctx.save_for_backward(x)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        dx, width = torch.empty_like(x), x.shape[-1] // 2
        _gated_back[(triton.cdiv(dy.numel(), 1024),)](x, dy.contiguous(), dx, dy.numel(), width, 1024)
        return dx


def warps(block: int) -> int:
    return max(1, min(8, block // 256))


@triton.jit
def _add_norm(a, b, weight, bias, y, whole, stats, width, eps, ADDED: tl.constexpr, BLOCK: tl.constexpr):
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    inside = column < width
    place = row.to(tl.int64) * width + column
    value = tl.load(a + place, mask=inside, other=0.0).to(tl.float32)
    if ADDED:
        value += tl.load(b + place, mask=inside, other=0.0).to(tl.float32)
        kept = value.to(whole.dtype.element_ty)
        tl.store(whole + place, kept, mask=inside)
        value = kept.to(tl.float32)
    mean = tl.sum(value, axis=0) / width
    off = tl.where(inside, value - mean, 0.0)
    steep = 1 / tl.sqrt(tl.sum(off * off, axis=0) / width + eps)
    tl.store(stats + row * 2, mean)
    tl.store(stats + row * 2 + 1, steep)
    by = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    plus = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + place, (off * steep * by + plus).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _add_norm_back(x, weight, stats, dy, beside, dx, width, BESIDE: tl.constexpr, BLOCK: tl.constexpr):
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    inside = column < width
    place = row.to(tl.int64) * width + column
    mean, steep = tl.load(stats + row * 2), tl.load(stats + row * 2 + 1)
    normal = (tl.load(x + place, mask=inside, other=0.0).to(tl.float32) - mean) * steep
    normal = tl.where(inside, normal, 0.0)
    by = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    slope = tl.load(dy + place, mask=inside, other=0.0).to(tl.float32) * by
    level, tilt = tl.sum(slope, axis=0) / width, tl.sum(slope * normal, axis=0) / width
    value = steep * (slope - level - normal * tilt)
    if BESIDE:
        value += tl.load(beside + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(dx + place, value.to(dx.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["total"])
def _gated(x, y, total, width, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < total
    of = place // width * (2 * width) + place % width
    value = tl.load(x + of, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(x + of + width, mask=inside, other=0.0).to(tl.float32)
    open = 0.5 * (1 + tl.erf(gate * 0.7071067811865476))
    tl.store(y + place, (value * gate * open).to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["total"])
def _gated_back(x, dy, dx, total, width, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < total
    of = place // width * (2 * width) + place % width
    value = tl.load(x + of, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(x + of + width, mask=inside, other=0.0).to(tl.float32)
    slope = tl.load(dy + place, mask=inside, other=0.0).to(tl.float32)
    open = 0.5 * (1 + tl.erf(gate * 0.7071067811865476))
    steep = open + gate * tl.exp(-0.5 * gate * gate) * 0.3989422804014327
    tl.store(dx + of, (slope * gate * open).to(dx.dtype.element_ty), mask=inside)
    tl.store(dx + of + width, (slope * value * steep).to(dx.dtype.element_ty), mask=inside)
