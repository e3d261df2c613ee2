"""What fused blocks are made of: Triton's kernels where they can run, and elsewhere the same in torch's own words."""

from importlib.util import find_spec
from subprocess import SubprocessError

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAST = torch.channels_last


def unfit(device: torch.device) -> str | None:
    """Why Triton's kernels do not run on a CUDA device, None where they do: it is tried on a few numbers."""
    if find_spec("triton") is None:
        return "Triton is not installed"
    from triton import TritonError  # deferred: not on every machine

    try:
        gated(torch.zeros(1, 2, device=device, dtype=torch.float16))
    except (TritonError, RuntimeError, OSError, SubprocessError) as error:
        return " ".join(f"Triton fails: {error}".split())[:200]
    return None


def group_norm(
    x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor]:
    """`silu(norm(x + shift))`, and x for other uses where there is no shift.

    x [N,C,h,w], shift [N,C], weight and bias [C], frozen.
    """
    x = x.contiguous(memory_format=LAST)
    if on_kernels(x):
        from patina.engine.fused.groupnorm import GroupNorm  # deferred: Triton is not on every machine

        return GroupNorm.apply(x, shift, weight, bias, groups, eps, silu)
    shifted = x if shift is None else x + shift[:, :, None, None]
    y = F.group_norm(shifted, groups, weight, bias, eps)
    return F.silu(y) if silu else y, x


def add_norm(norm: nn.LayerNorm, a: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor]:
    """`norm(a + b)` and `a + b`, rows [...,C]; without b, of a."""
    a = a.contiguous()
    if on_kernels(a):
        from patina.engine.fused.rows import AddNorm

        return AddNorm.apply(a, b, norm.weight, norm.bias, norm.eps)
    whole = a if b is None else a + b
    return F.layer_norm(whole, norm.normalized_shape, norm.weight, norm.bias, norm.eps), whole


def gated(x: Tensor) -> Tensor:
    """Rows [...,2C] -> first half * gelu(second half), exact gelu (Shazeer 2020, arXiv:2002.05202)."""
    if on_kernels(x):
        from patina.engine.fused.rows import Gated

        return Gated.apply(x.contiguous())
    value, gate = x.chunk(2, dim=-1)
    return value * F.gelu(gate)


def add_rms(norm: nn.Module, eps: float, a: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor]:
    """`norm(a + b)` and `a + b`, rows [...,C], for an RMS norm of that eps; without b, of a."""
    weight = norm.weight
    assert isinstance(weight, Tensor)
    if on_kernels(a):
        from patina.engine.fused.rms import AddRms

        return AddRms.apply(a.contiguous(), b, weight, eps)
    whole = a if b is None else a + b
    return norm(whole), whole


def swish(gate: Tensor, value: Tensor) -> Tensor:
    """`silu(gate) * value` (Shazeer 2020, arXiv:2002.05202)."""
    if on_kernels(gate):
        from patina.engine.fused.rms import Swish

        return Swish.apply(gate.contiguous(), value.contiguous())
    return F.silu(gate) * value


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads x [B,T,heads,D] at rotary positions, whose cos and sin are [B,T,D] (Su et al. 2021, arXiv:2104.09864)."""
    if on_kernels(x):
        from patina.engine.fused.rms import Turned

        places = x.shape[:2]
        angles = (part.expand(*places, -1).flatten(0, 1).contiguous() for part in (cos, sin))
        return Turned.apply(x.flatten(0, 1).contiguous(), *angles).view(x.shape)
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, :, None] + torch.cat((-second, first), dim=-1) * sin[:, :, None]


def on_kernels(x: Tensor) -> bool:
    """Whether Triton's kernels take such a tensor."""
    return x.is_cuda and x.dtype in (torch.float16, torch.bfloat16)
