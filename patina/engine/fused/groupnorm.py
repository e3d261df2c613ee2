"""Group normalisation of channels_last pictures, with SiLU behind it, by the input alone: its weights are frozen.

torch's own gives NCHW back whatever it was given, so that every convolution around it must convert.
"""

# torch's stubs have another `backward` than its documentation, and Triton's know no launch options: not ours to mend.
# pyright: reportCallIssue=false, reportArgumentType=false, reportIncompatibleMethodOverride=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

ROWS, CHANNELS, CHUNKS = 64, 64, 32
"""A program's tile: places of the picture times channels; and how many tiles' sums are joined at once."""
LAST = torch.channels_last


class GroupNorm(torch.autograd.Function):
    """`silu(norm(x + shift))` and x itself, for whoever adds to it: the gradients of both are then joined here."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
    ) -> tuple[Tensor, Tensor]:
        """x [N,C,h,w] channels_last; shift [N,C], with which x is of no other use; weight and bias [C]; statistics are fp32."""
        assert not weight.requires_grad, "the base is frozen"
        ctx.size = size = _Size(x, groups)
        ctx.flags = (shift is not None, silu, ROWS, CHANNELS)
        shift = x if shift is None else shift.contiguous()
        sums, stats = size.partial(x), size.by_channel(x)
        y = torch.empty_like(x)
        _moments[size.tiles](x, shift, sums, size.rows, size.channels, ctx.flags[0], ROWS, CHANNELS)
        _join_moments[size.groups](sums, stats, *size.joined, eps, ROWS, CHUNKS, size.member)
        _normalise[size.tiles](x, shift, stats, weight, bias, y, size.rows, size.channels, *ctx.flags)
        ctx.save_for_backward(x, shift, stats, weight, bias)
        ctx.set_materialize_grads(False)  # where x is of no other use, no zeros are to be added
        return y, x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, beside: Tensor | None) -> tuple[Tensor | None, ...]:
        """`beside`: what else flows back into x."""
        x, shift, stats, weight, bias = ctx.saved_tensors
        size = ctx.size
        assert beside is None or not ctx.needs_input_grad[1], "the gradient by shift is the sum of that by x"
        dy = dy.contiguous(memory_format=LAST)
        also = dy if beside is None else beside.contiguous(memory_format=LAST)
        sums, means = size.partial(x), size.by_channel(x)
        dx = torch.empty_like(x)
        _slopes[size.tiles](x, shift, stats, weight, bias, dy, sums, size.rows, size.channels, *ctx.flags)
        _join_slopes[size.groups](sums, means, *size.joined, CHUNKS, size.member)
        inputs = (x, shift, stats, weight, bias, dy, means, also, dx)
        _descend[size.tiles](*inputs, size.rows, size.channels, beside is not None, *ctx.flags)
        moved = dx.sum((2, 3), dtype=torch.float32).to(shift.dtype) if ctx.needs_input_grad[1] else None
        return dx, moved, None, None, None, None, None


class _Size:
    """How a picture's tensor is cut up."""

    def __init__(self, x: Tensor, groups: int) -> None:
        self.count, self.channels = x.shape[:2]
        self.rows = x.shape[2] * x.shape[3]
        self.chunks = triton.cdiv(self.rows, ROWS)
        self.tiles = (triton.cdiv(self.channels, CHANNELS), self.chunks, self.count)
        self.groups = (self.count, groups)
        self.joined = (self.rows, self.channels, self.chunks, self.channels // groups)
        self.member = triton.next_power_of_2(self.channels // groups)

    def partial(self, x: Tensor) -> Tensor:
        return x.new_empty((self.count, self.chunks, 2, self.channels), dtype=torch.float32)

    def by_channel(self, x: Tensor) -> Tensor:
        return x.new_empty((self.count, 2, self.channels), dtype=torch.float32)


@triton.jit
def _tile(x, shift, rows, channels, SHIFTED: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """A tile's places in the whole tensor, its channels, the mask, and x + shift in fp32."""
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    n = tl.program_id(2)
    place = (n.to(tl.int64) * rows + row)[:, None] * channels + channel[None, :]
    mask = (row < rows)[:, None] & (channel < channels)[None, :]
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    if SHIFTED:
        value += tl.load(shift + n * channels + channel, mask=channel < channels, other=0.0).to(tl.float32)[None, :]
    return place, channel, mask, value


@triton.jit
def _scaled(value, stats, weight, bias, channel, channels):
    """The tile normalised, what it is then before the activation, 1 / spread and the weight."""
    inside = channel < channels
    of = stats + tl.program_id(2) * 2 * channels + channel
    mean = tl.load(of, mask=inside, other=0.0)[None, :]
    steep = tl.load(of + channels, mask=inside, other=0.0)[None, :]
    by = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)[None, :]
    plus = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)[None, :]
    normal = (value - mean) * steep
    return normal, normal * by + plus, steep, by


@triton.jit(do_not_specialize=["rows"])
def _moments(x, shift, sums, rows, channels, SHIFTED: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Mean and sum of squared deviations of each channel in each tile."""
    _, channel, mask, value = _tile(x, shift, rows, channels, SHIFTED, ROWS, CHANNELS)
    count = tl.minimum(rows - tl.program_id(1) * ROWS, ROWS)
    mean = tl.sum(tl.where(mask, value, 0.0), axis=0) / count
    off = tl.where(mask, value - mean[None, :], 0.0)
    to = sums + (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)) * 2 * channels + channel
    tl.store(to, mean, mask=channel < channels)
    tl.store(to + channels, tl.sum(off * off, axis=0), mask=channel < channels)


@triton.jit(do_not_specialize=["rows", "chunks"])
def _join_moments(
    sums, stats, rows, channels, chunks, size, eps, ROWS: tl.constexpr, CHUNKS: tl.constexpr, MEMBER: tl.constexpr
):
    """Mean and 1 / spread of each group, written for each of its channels (Chan, Golub and LeVeque 1979)."""
    n, member = tl.program_id(0), tl.arange(0, MEMBER)
    channel = tl.program_id(1) * size + member
    total = tl.zeros((CHUNKS, MEMBER), tl.float32)
    for start in range(0, chunks, CHUNKS):
        chunk = start + tl.arange(0, CHUNKS)
        mask = (chunk < chunks)[:, None] & (member < size)[None, :]
        place = ((n * chunks + chunk) * 2 * channels)[:, None] + channel[None, :]
        count = tl.minimum(rows - chunk * ROWS, ROWS).to(tl.float32)[:, None]
        total += tl.load(sums + place, mask=mask, other=0.0) * count
    mean = tl.sum(tl.sum(total, axis=1), axis=0) / (rows * size)
    total = tl.zeros((CHUNKS, MEMBER), tl.float32)
    for start in range(0, chunks, CHUNKS):
        chunk = start + tl.arange(0, CHUNKS)
        mask = (chunk < chunks)[:, None] & (member < size)[None, :]
        place = ((n * chunks + chunk) * 2 * channels)[:, None] + channel[None, :]
        count = tl.minimum(rows - chunk * ROWS, ROWS).to(tl.float32)[:, None]
        off = tl.load(sums + place, mask=mask, other=0.0) - mean
        squares = tl.load(sums + channels + place, mask=mask, other=0.0) + count * off * off
        total += tl.where(mask, squares, 0.0)
    spread = tl.sum(tl.sum(total, axis=1), axis=0) / (rows * size)
    to = stats + n * 2 * channels + channel
    tl.store(to, tl.zeros((MEMBER,), tl.float32) + mean, mask=member < size)
    tl.store(to + channels, tl.zeros((MEMBER,), tl.float32) + 1 / tl.sqrt(spread + eps), mask=member < size)


@triton.jit(do_not_specialize=["rows"])
def _normalise(
    x,
    shift,
    stats,
    weight,
    bias,
    y,
    rows,
    channels,
    SHIFTED: tl.constexpr,
    SILU: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    place, channel, mask, value = _tile(x, shift, rows, channels, SHIFTED, ROWS, CHANNELS)
    _, z, _, _ = _scaled(value, stats, weight, bias, channel, channels)
    if SILU:
        z = z * tl.sigmoid(z)
    tl.store(y + place, z.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _slope(z, by, dy, place, mask, SILU: tl.constexpr):
    """The gradient by the normalised values."""
    slope = tl.load(dy + place, mask=mask, other=0.0).to(tl.float32) * by
    if SILU:
        open = tl.sigmoid(z)
        slope = slope * open * (1 + z * (1 - open))
    return slope


@triton.jit(do_not_specialize=["rows"])
def _slopes(
    x,
    shift,
    stats,
    weight,
    bias,
    dy,
    sums,
    rows,
    channels,
    SHIFTED: tl.constexpr,
    SILU: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Each tile's sums by channel of the gradient, and of the gradient times the normalised values."""
    place, channel, mask, value = _tile(x, shift, rows, channels, SHIFTED, ROWS, CHANNELS)
    normal, z, _, by = _scaled(value, stats, weight, bias, channel, channels)
    slope = tl.where(mask, _slope(z, by, dy, place, mask, SILU), 0.0)
    to = sums + (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)) * 2 * channels + channel
    tl.store(to, tl.sum(slope, axis=0), mask=channel < channels)
    tl.store(to + channels, tl.sum(slope * normal, axis=0), mask=channel < channels)


@triton.jit(do_not_specialize=["rows", "chunks"])
def _join_slopes(sums, means, rows, channels, chunks, size, CHUNKS: tl.constexpr, MEMBER: tl.constexpr):
    """Both sums over a group, as means, written for each of its channels."""
    n, member = tl.program_id(0), tl.arange(0, MEMBER)
    channel = tl.program_id(1) * size + member
    first = tl.zeros((CHUNKS, MEMBER), tl.float32)
    second = tl.zeros((CHUNKS, MEMBER), tl.float32)
    for start in range(0, chunks, CHUNKS):
        chunk = start + tl.arange(0, CHUNKS)
        mask = (chunk < chunks)[:, None] & (member < size)[None, :]
        place = ((n * chunks + chunk) * 2 * channels)[:, None] + channel[None, :]
        first += tl.load(sums + place, mask=mask, other=0.0)
        second += tl.load(sums + channels + place, mask=mask, other=0.0)
    to = means + n * 2 * channels + channel
    flat = tl.zeros((MEMBER,), tl.float32)
    tl.store(to, flat + tl.sum(tl.sum(first, axis=1), axis=0) / (rows * size), mask=member < size)
    tl.store(to + channels, flat + tl.sum(tl.sum(second, axis=1), axis=0) / (rows * size), mask=member < size)


@triton.jit(do_not_specialize=["rows"])
def _descend(
    x,
    shift,
    stats,
    weight,
    bias,
    dy,
    means,
    beside,
    dx,
    rows,
    channels,
    BESIDE: tl.constexpr,
    SHIFTED: tl.constexpr,
    SILU: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """The gradient by x."""
    place, channel, mask, value = _tile(x, shift, rows, channels, SHIFTED, ROWS, CHANNELS)
    normal, z, steep, by = _scaled(value, stats, weight, bias, channel, channels)
    of = means + tl.program_id(2) * 2 * channels + channel
    level = tl.load(of, mask=channel < channels, other=0.0)[None, :]
    tilt = tl.load(of + channels, mask=channel < channels, other=0.0)[None, :]
    slope = steep * (_slope(z, by, dy, place, mask, SILU) - level - normal * tilt)
    if BESIDE:
        slope += tl.load(beside + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(dx + place, slope.to(dx.dtype.element_ty), mask=mask)
