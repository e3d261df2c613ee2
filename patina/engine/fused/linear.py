"""Layers of a frozen base with plain LoRAs on them, in as few products as there can be.

peft computes `base(x) + B(A(x)) * scale` in five kernels a layer forward and nine backward; layers that share their
input do it each for themselves.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from peft.tuners.lora import Conv2d, Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from patina.lora.recipe import ADAPTER, Carrier


class Layer(NamedTuple):
    """One layer's share: out = x @ weight.T + bias + scale * x @ A.T @ B.T."""

    weight: Tensor
    bias: Tensor | None
    A: nn.Parameter | None
    B: nn.Parameter | None
    scale: float


def project(layers: Sequence[nn.Module], x: Tensor) -> tuple[Tensor, ...]:
    """What each of the layers makes of rows x [...,in]; 1x1 convolutions count as linear layers."""
    known = [_layer(layer) for layer in layers]
    if any(one is None or one.weight.dtype != x.dtype or _is_other(one, x) for one in known):
        return tuple(_plainly(layer, x) for layer in layers)
    told = [one for one in known if one is not None]
    if all(one.A is None for one in told):
        return tuple(F.linear(x, one.weight, one.bias) for one in told)
    tensors = [part for one in told for part in (one.weight, one.bias, one.A, one.B)]
    return Projected.apply(x, tuple(one.scale for one in told), *tensors)


class Projected(torch.autograd.Function):
    """Rows through layers that share them. Gradients by A and B are added to theirs in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scales: tuple[float, ...], *tensors: Tensor | None) -> tuple[Tensor, ...]:
        """`tensors`: weight, bias, A and B (or None) of each layer."""
        rows = x.reshape(-1, x.shape[-1])
        layers = [Layer(*tensors[4 * i : 4 * i + 4], scale) for i, scale in enumerate(scales)]
        outputs, narrow = [], []
        for weight, bias, A, B, scale in layers:
            y = F.linear(rows, weight, bias)
            if A is not None and B is not None:
                narrow.append(rows @ A.flatten(1).T)
                y.addmm_(narrow[-1], B.flatten(1).T, alpha=scale)
            outputs.append(y.view(*x.shape[:-1], -1))
        ctx.scales = scales
        ctx.save_for_backward(x, *tensors, *narrow)
        ctx.masters = tensors
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        count = len(ctx.scales)
        x, *rest = ctx.saved_tensors
        tensors, narrow = rest[: 4 * count], list(rest[4 * count :])
        rows = x.reshape(-1, x.shape[-1])
        wanted = ctx.needs_input_grad[0]
        dx = None
        for i, scale in enumerate(ctx.scales):
            weight, _, A, B = tensors[4 * i : 4 * i + 4]
            slope = slopes[i].reshape(-1, slopes[i].shape[-1])
            if wanted:
                dx = slope @ weight if dx is None else dx.addmm_(slope, weight)
            if A is None:
                continue
            t = narrow.pop(0)
            dt = torch.addmm(t, slope, B.flatten(1), beta=0, alpha=scale)
            _grad(ctx.masters[4 * i + 3]).addmm_(slope.T, t, alpha=scale)
            _grad(ctx.masters[4 * i + 2]).addmm_(dt.T, rows)
            if wanted:
                dx.addmm_(dt, A.flatten(1))
        return (None if dx is None else dx.view(x.shape), None, *[None] * (4 * count))


def _grad(weight: Tensor) -> Tensor:
    """[r,in] or [out,r], a view of the gradient that lives as long as the weight."""
    assert weight.grad is not None, "flat gradients live as long as the weights"
    return weight.grad.flatten(1)


def _layer(layer: nn.Module) -> Layer | None:
    """None for whatever is more than a plain LoRA."""
    if isinstance(layer, Linear | Conv2d):
        if layer.disable_adapters or layer.merged or layer.lora_variant or layer.active_adapters != [ADAPTER]:
            return None
        if not isinstance(layer.lora_dropout[ADAPTER], nn.Identity):
            return None
        base = _layer(layer.get_base_layer())
        A, B = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        if base is None:
            return None
        return Layer(base.weight, base.bias, A, B, layer.scaling[ADAPTER])
    if type(layer) is nn.Linear:
        return Layer(layer.weight, layer.bias, None, None, 0.0)
    if type(layer) is nn.Conv2d and layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.groups == 1:
        return Layer(layer.weight.flatten(1), layer.bias, None, None, 0.0)
    return None


def _is_other(one: Layer, x: Tensor) -> bool:
    return one.A is not None and (one.A.dtype != x.dtype or one.B.dtype != x.dtype)


def _plainly(layer: nn.Module, x: Tensor) -> Tensor:
    base = layer.get_base_layer() if isinstance(layer, Carrier) else layer
    if isinstance(base, nn.Conv2d):
        return layer(x.transpose(1, 2).unsqueeze(-1)).squeeze(-1).transpose(1, 2)
    return layer(x)
