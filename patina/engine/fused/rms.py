"""What a language model's layer does to each row: a sum's RMS normalisation, the gated activation, turned positions.

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

from patina.engine.fused.rows import warps

BLOCK, WARPS = 4096, 8


class AddRms(torch.autograd.Function):
    """`norm(a + b)` and `a + b`; the norm is Zhang & Sennrich's (2019, arXiv:1910.07467)."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """a and b [...,C] contiguous; weight [C]."""
        assert not weight.requires_grad, "the base is frozen"
        width = a.shape[-1]
        rows, block = a.numel() // width, triton.next_power_of_2(width)
        added = b is not None
        y, whole = torch.empty_like(a), torch.empty_like(a) if added else a
        steep = a.new_empty(rows, dtype=torch.float32)
        b = b.contiguous() if added else a
        _add_rms[(rows,)](a, b, weight, y, whole, steep, width, eps, added, block, num_warps=warps(block))
        ctx.save_for_backward(whole, weight, steep)
        ctx.set_materialize_grads(False)  # where the sum is of no other use, no zeros are to be added
        ctx.added = added
        return y, whole if added else a.view_as(a)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, beside: Tensor | None) -> tuple[Tensor | None, ...]:
        """`beside`: what else flows back into the sum."""
        whole, weight, steep = ctx.saved_tensors
        width = whole.shape[-1]
        rows, block = whole.numel() // width, triton.next_power_of_2(width)
        dy, dx = dy.contiguous(), torch.empty_like(whole)
        also = dy if beside is None else beside.contiguous()
        inputs = (whole, weight, steep, dy, also, dx, width, beside is not None, block)
        _add_rms_back[(rows,)](*inputs, num_warps=warps(block))
        return dx, dx if ctx.added else None, None, None


class Swish(torch.autograd.Function):
    """`silu(gate) * value` (Shazeer 2020, arXiv:2002.05202)."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, value: Tensor) -> Tensor:
        """Both of one shape, contiguous."""
        y = torch.empty_like(gate)
        _swish[(triton.cdiv(y.numel(), BLOCK),)](gate, value, y, y.numel(), BLOCK, num_warps=WARPS)
        ctx.save_for_backward(gate, value)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        gate, value = ctx.saved_tensors
        dgate, dvalue = torch.empty_like(gate), torch.empty_like(value)
        grid = (triton.cdiv(dy.numel(), BLOCK),)
        _swish_back[grid](gate, value, dy.contiguous(), dgate, dvalue, dy.numel(), BLOCK, num_warps=WARPS)
        return dgate, dvalue


class Turned(torch.autograd.Function):
    """Rotary positions (Su et al. 2021, arXiv:2104.09864), in the halves of a head as transformers has them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [N,heads,D], cos and sin [N,D], all contiguous."""
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        return _turn(dy.contiguous(), *ctx.saved_tensors, back=True), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    y = torch.empty_like(x)
    count, heads, width = x.shape
    half = width // 2
    many, wide = triton.next_power_of_2(heads), triton.next_power_of_2(half)
    _turned[(count,)](x, cos, sin, y, heads, half, back, many, wide, num_warps=4)
    return y


@triton.jit
def _add_rms(a, b, weight, y, whole, spreads, width, eps, ADDED: tl.constexpr, BLOCK: tl.constexpr):
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    inside = column < width
    place = row.to(tl.int64) * width + column
    value = tl.load(a + place, mask=inside, other=0.0).to(tl.float32)
    if ADDED:
        value += tl.load(b + place, mask=inside, other=0.0).to(tl.float32)
        kept = value.to(whole.dtype.element_ty)
        tl.store(whole + place, kept, mask=inside)
        value = kept.to(tl.float32)
    steep = 1 / tl.sqrt(tl.sum(value * value, axis=0) / width + eps)
    tl.store(spreads + row, steep)
    by = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + place, (value * steep * by).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _add_rms_back(x, weight, spreads, dy, beside, dx, width, BESIDE: tl.constexpr, BLOCK: tl.constexpr):
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    inside = column < width
    place = row.to(tl.int64) * width + column
    steep = tl.load(spreads + row)
    normal = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) * steep
    by = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    slope = tl.load(dy + place, mask=inside, other=0.0).to(tl.float32) * by
    value = steep * (slope - normal * (tl.sum(slope * normal, axis=0) / width))
    if BESIDE:
        value += tl.load(beside + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(dx + place, value.to(dx.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["total"])
def _swish(gate, value, y, total, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < total
    g = tl.load(gate + place, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(value + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + place, (g * tl.sigmoid(g) * v).to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["total"])
def _swish_back(gate, value, dy, dgate, dvalue, total, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < total
    g = tl.load(gate + place, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(value + place, mask=inside, other=0.0).to(tl.float32)
    slope = tl.load(dy + place, mask=inside, other=0.0).to(tl.float32)
    open = tl.sigmoid(g)
    steep = open * (1 + g * (1 - open))
    tl.store(dgate + place, (slope * v * steep).to(dgate.dtype.element_ty), mask=inside)
    tl.store(dvalue + place, (slope * g * open).to(dvalue.dtype.element_ty), mask=inside)


@triton.jit
def _turned(x, cos, sin, y, heads, half, BACK: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    head, column = tl.arange(0, HEADS), tl.arange(0, HALF)
    inside, within = column < half, (head < heads)[:, None] & (column < half)[None, :]
    of = row * 2 * half + column
    cos1, cos2 = tl.load(cos + of, mask=inside, other=0.0), tl.load(cos + of + half, mask=inside, other=0.0)
    sin1, sin2 = tl.load(sin + of, mask=inside, other=0.0), tl.load(sin + of + half, mask=inside, other=0.0)
    place = (row * heads + head)[:, None] * (2 * half) + column[None, :]
    first = tl.load(x + place, mask=within, other=0.0).to(tl.float32)
    second = tl.load(x + place + half, mask=within, other=0.0).to(tl.float32)
    cos1, cos2 = cos1.to(tl.float32)[None, :], cos2.to(tl.float32)[None, :]
    sin1, sin2 = sin1.to(tl.float32)[None, :], sin2.to(tl.float32)[None, :]
    if BACK:
        one, other = first * cos1 + second * sin2, second * cos2 - first * sin1
    else:
        one, other = first * cos1 - second * sin1, second * cos2 + first * sin2
    tl.store(y + place, one.to(y.dtype.element_ty), mask=within)
    tl.store(y + place + half, other.to(y.dtype.element_ty), mask=within)
