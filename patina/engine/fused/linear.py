"""Layers of a frozen base with plain LoRAs on them, in as few products as there can be.

peft computes `base(x) + B(A(x)) * scale` in five kernels a layer forward and nine backward; layers that share their
input do it each for themselves.
"""

# torch's stubs have another `backward` than its documentation: not ours to mend.
# pyright: reportIncompatibleMethodOverride=false

from collections.abc import Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from peft.tuners.lora import Conv2d, Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from patina.bases import float8
from patina.engine.beside import aside
from patina.lora.recipe import ADAPTER, Carrier


class Layer(NamedTuple):
    """One layer's share: out = x @ weight.T + bias + scale * x @ A.T @ B.T."""

    weight: Tensor
    bias: Tensor | None
    A: nn.Parameter | None
    B: nn.Parameter | None
    scale: float
    bits: Any = None
    """How `weight` is kept small: bitsandbytes' word for 4 bits, or the scales [out,1] of fp8; None: it is not."""


def project(layers: Sequence[nn.Module], x: Tensor) -> tuple[Tensor, ...]:
    """What each of the layers makes of rows x [...,in]; 1x1 convolutions count as linear layers."""
    told = [one for one in map(_layer, layers) if one is not None and _fits(one, x)]
    if len(told) < len(layers):
        return tuple(_plainly(layer, x) for layer in layers)
    if all(one.A is None for one in told):
        return tuple(
            F.linear(x, one.weight, one.bias) if one.bits is None else layer(x)
            for layer, one in zip(layers, told, strict=True)
        )
    tensors = [part for one in told for part in (one.weight, one.bias, one.A, one.B)]
    kinds = tuple((one.scale, one.bits) for one in told)
    return Projected.apply(x, kinds, torch.is_grad_enabled(), *tensors)


class Projected(torch.autograd.Function):
    """Rows through layers that share them. Gradients by A and B are added to theirs in place."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, kinds: tuple[tuple[float, Any], ...], learns: bool, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        """`kinds`: scale and bits of each layer; `tensors`: weight, bias, A and B (or None) of each."""
        rows = x.reshape(-1, x.shape[-1])
        outputs, narrow = [], []
        told = float8.for_units(rows, learns) if any(isinstance(bits, Tensor) for _, bits in kinds) else None
        for i, (scale, bits) in enumerate(kinds):
            weight, bias, A, B = tensors[4 * i : 4 * i + 4]
            assert weight is not None
            y = _product(rows, weight, bias, bits, told)
            if A is not None and B is not None:
                narrow.append(rows @ A.flatten(1).T)
                y.addmm_(narrow[-1], B.flatten(1).T, alpha=scale)
            outputs.append(y.view(*x.shape[:-1], -1))
        ctx.kinds = kinds
        ctx.save_for_backward(x, *tensors, *narrow)
        # what learns, by its own name for its gradient's sake; held so, a frozen weight would stay past checkpointing
        ctx.learning = [tensors[4 * i + 2 : 4 * i + 4] for i in range(len(kinds))]
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        count = len(ctx.kinds)
        x, *rest = ctx.saved_tensors
        tensors, narrow = rest[: 4 * count], list(rest[4 * count :])
        rows = x.reshape(-1, x.shape[-1])
        wanted = ctx.needs_input_grad[0]
        dx = None
        for i, (scale, bits) in enumerate(ctx.kinds):
            weight, _, A, B = tensors[4 * i : 4 * i + 4]
            slope = slopes[i].reshape(-1, slopes[i].shape[-1])
            if wanted:
                whole = _whole(weight, bits, slope.dtype)
                dx = slope @ whole if dx is None else dx.addmm_(slope, whole)
            if A is None:
                continue
            t = narrow.pop(0)
            dt = torch.addmm(t, slope, B.flatten(1), beta=0, alpha=scale)
            gradients = map(_grad, ctx.learning[i])
            aside(partial(_learn, *gradients, rows, t, slope, dt, scale), rows, slope)
            if dx is not None:
                dx.addmm_(dt, A.flatten(1))
        return (None if dx is None else dx.view(x.shape), None, None, *[None] * (4 * count))


def _learn(
    of_A: Tensor, of_B: Tensor, rows: Tensor, narrow: Tensor, slope: Tensor, narrow_slope: Tensor, scale: float
) -> None:
    """Add to the gradients of A [r,in] and B [out,r]."""
    of_B.addmm_(slope.T, narrow, alpha=scale)
    of_A.addmm_(narrow_slope.T, rows)


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None, bits: Any, told: float8.Rounded | None) -> Tensor:
    """[N,in] -> [N,out]; `told`: the rows as the units for fp8 take them, rounded once for all layers."""
    if not isinstance(bits, Tensor):
        return F.linear(rows, _whole(weight, bits, rows.dtype), bias)
    y = float8.product(rows, weight, bits, told)
    return y if bias is None else y.add_(bias)


def _whole(weight: Tensor, bits: Any, dtype: torch.dtype) -> Tensor:
    """[out,in], numbers again for as long as a product takes where they are kept small."""
    if bits is None:
        return weight
    if isinstance(bits, Tensor):
        return float8.whole(weight, bits, dtype)
    from bitsandbytes.functional import dequantize_4bit  # deferred: slow to import

    return dequantize_4bit(weight, bits)


def _grad(weight: Tensor) -> Tensor:
    """[r,in] or [out,r], a view of the gradient that lives as long as the weight."""
    assert weight.grad is not None, "flat gradients live as long as the weights"
    return weight.grad.flatten(1)


def _layer(layer: Any) -> Layer | None:
    """None for whatever is more than a plain LoRA on a plain layer."""
    if layer._forward_hooks or layer._forward_pre_hooks:
        return None
    if type(layer) in (Linear, Conv2d):
        return _adapted(layer)
    if type(layer) is nn.Linear or (type(layer) is nn.Conv2d and _is_linear(layer)):
        return Layer(layer.weight.flatten(1), layer.bias, None, None, 0.0)
    if type(layer) is float8.Float8Linear:
        return Layer(layer.weight, layer.bias, None, None, 0.0, layer.scale)
    kept, adapted = _in_bits()
    if type(layer) is adapted:
        return _adapted(layer)
    if type(layer) is kept:
        weight: Any = layer.weight
        bias: Any = layer.bias
        return Layer(weight, bias, None, None, 0.0, weight.quant_state)
    return None


@cache
def _in_bits() -> tuple[type[nn.Module], type[nn.Module]]:
    """bitsandbytes' linear layer in 4 bits, and peft's around it."""
    from bitsandbytes.nn import Linear4bit  # deferred: slow to import
    from peft.tuners.lora.bnb import Linear4bit as Adapted

    return Linear4bit, Adapted


def _adapted(layer: Any) -> Layer | None:
    if layer.disable_adapters or layer.merged or layer.lora_variant or layer.active_adapters != [ADAPTER]:
        return None
    base = _layer(layer.get_base_layer())
    if base is None or not isinstance(layer.lora_dropout[ADAPTER], nn.Identity):
        return None
    A, B = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
    if any(part.bias is not None or part._forward_hooks or part._forward_pre_hooks for part in (A, B)):
        return None  # hooks there are rank and module dropout
    return Layer(base.weight, base.bias, A.weight, B.weight, layer.scaling[ADAPTER], base.bits)


def _is_linear(conv: nn.Conv2d) -> bool:
    ones = {*conv.kernel_size, *conv.stride, *conv.dilation, conv.groups}
    return ones == {1} and conv.padding in ((0, 0), "valid")


def _fits(one: Layer, x: Tensor) -> bool:
    """Whether all are of x's numbers, and what learns has the gradient in place that is added to."""
    factors = [factor for factor in (one.A, one.B) if factor is not None]
    kinds = [_numbers(one, x), *(factor.dtype for factor in factors)]
    alike = all(kind == x.dtype for kind in kinds) and (one.bias is None or one.bias.dtype == x.dtype)
    learning = [factor for factor in factors if factor.requires_grad and torch.is_grad_enabled()]
    return alike and all(factor.grad is not None for factor in learning)


def _numbers(one: Layer, x: Tensor) -> torch.dtype:
    """What a layer's products are computed in: fp8 takes what comes."""
    if isinstance(one.bits, Tensor):
        return x.dtype
    return one.weight.dtype if one.bits is None else one.bits.dtype


def _plainly(layer: nn.Module, x: Tensor) -> Tensor:
    """Rows x [N,n,in] through whatever the layer is."""
    base = layer.get_base_layer() if isinstance(layer, Carrier) else layer
    if isinstance(base, nn.Conv2d):
        return layer(x.transpose(1, 2).unsqueeze(-1)).squeeze(-1).transpose(1, 2)
    return layer(x)
