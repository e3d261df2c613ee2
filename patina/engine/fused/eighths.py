"""Rows rounded to e4m3, and numbers again, in one pass over memory each."""

# Triton's stubs know no launch options: not ours to mend.
# pyright: reportCallIssue=false, reportArgumentType=false

import torch
import triton
import triton.language as tl
from torch import Tensor

WIDEST = 4096
"""Numbers of a row that a program holds at once."""


def round_rows(matrix: Tensor, largest: float, tiny: float) -> tuple[Tensor, Tensor]:
    """[rows,in] contiguous -> numbers [rows,in] e4m3, of which a row's largest is `largest`, and scales [rows,1]."""
    rows, width = matrix.shape
    numbers = torch.empty_like(matrix, dtype=torch.float8_e4m3fn)
    scale = matrix.new_empty((rows, 1), dtype=torch.float32)
    block = min(WIDEST, triton.next_power_of_2(width))
    _round_rows[(rows,)](matrix, numbers, scale, width, largest, tiny, block, num_warps=8)
    return numbers, scale


def spell(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """[rows,in] e4m3 times scales [rows,1], in `dtype`."""
    rows, width = numbers.shape
    whole = torch.empty_like(numbers, dtype=dtype)
    block = min(WIDEST, triton.next_power_of_2(width))
    _spell[(rows, triton.cdiv(width, block))](numbers, scale, whole, width, block, num_warps=8)
    return whole


@triton.jit
def _round_rows(matrix, numbers, scales, width, largest, tiny, block: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * width
    most = tl.zeros([block], tl.float32)
    for start in range(0, width, block):
        at = start + tl.arange(0, block)
        most = tl.maximum(most, tl.abs(tl.load(matrix + first + at, at < width, 0.0).to(tl.float32)))
    scale = tl.maximum(tl.max(most, 0), tiny) / largest
    tl.store(scales + tl.program_id(0), scale)
    for start in range(0, width, block):
        at = start + tl.arange(0, block)
        x = tl.load(matrix + first + at, at < width, 0.0).to(tl.float32)
        tl.store(numbers + first + at, (x / scale).to(tl.float8e4nv), at < width)


@triton.jit
def _spell(numbers, scales, whole, width, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * block + tl.arange(0, block)
    x = tl.load(numbers + row * width + at, at < width).to(tl.float32) * tl.load(scales + row)
    tl.store(whole + row * width + at, x.to(whole.dtype.element_ty), at < width)
