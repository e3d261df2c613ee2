"""What fused blocks are made of: Triton's kernels where they can run, and elsewhere the same in torch's own words."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAST = torch.channels_last


def group_norm(
    x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor]:
    """`silu(norm(x + shift))`, and x for other uses where there is no shift.

    x [N,C,h,w], shift [N,C], weight and bias [C], frozen.
    """
    x = x.contiguous(memory_format=LAST)
    if _on_kernels(x):
        from patina.engine.fused.groupnorm import GroupNorm  # deferred: Triton is not on every machine

        return GroupNorm.apply(x, shift, weight, bias, groups, eps, silu)
    shifted = x if shift is None else x + shift[:, :, None, None]
    y = F.group_norm(shifted, groups, weight, bias, eps)
    return F.silu(y) if silu else y, x


def add_norm(norm: nn.LayerNorm, a: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor]:
    """`norm(a + b)` and `a + b`, rows [...,C]; without b, of a."""
    a = a.contiguous()
    if _on_kernels(a):
        from patina.engine.fused.rows import AddNorm

        return AddNorm.apply(a, b, norm.weight, norm.bias, norm.eps)
    whole = a if b is None else a + b
    return F.layer_norm(whole, norm.normalized_shape, norm.weight, norm.bias, norm.eps), whole


def gated(x: Tensor) -> Tensor:
    """Rows [...,2C] -> first half * gelu(second half), exact gelu (Shazeer 2020, arXiv:2002.05202)."""
    if _on_kernels(x):
        from patina.engine.fused.rows import Gated

        return Gated.apply(x.contiguous())
    value, gate = x.chunk(2, dim=-1)
    return value * F.gelu(gate)


def _on_kernels(x: Tensor) -> bool:
    return x.is_cuda and x.dtype in (torch.float16, torch.bfloat16)
