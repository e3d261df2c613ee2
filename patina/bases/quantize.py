"""Keeping a frozen base's linear layers in 8 or 4 bits: less memory, at some loss of speed."""

# bitsandbytes' weights take more arguments than `nn.Parameter`, as which its stubs know them: not ours to mend.
# pyright: reportCallIssue=false

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

if TYPE_CHECKING:
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

Quantize = Literal["none", "8bit", "4bit"]


def quantize(module: nn.Module, how: Quantize, dtype: torch.dtype) -> None:
    """Replace the linear layers, of weights [out,in], by bitsandbytes', which round when they are moved to a device.

    Convolutions stay as they are: bitsandbytes has none. `dtype`: what products are computed in.
    """
    if how == "none":
        return
    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear:
                setattr(parent, name, MADE[how](layer, dtype))


def keep_gradients(module: nn.Module) -> None:
    """On a CPU bitsandbytes would pack a layer's weights in eval mode, for a product that knows no gradient."""
    from bitsandbytes.nn import Linear4bit  # deferred: slow to import

    for layer in module.modules():
        if isinstance(layer, Linear4bit):
            layer.support_avx512bf16_for_cpu = False


def _in_8(layer: nn.Linear, dtype: torch.dtype) -> Linear8bitLt:
    """LLM.int8() (Dettmers et al. 2022, arXiv:2208.07339)."""
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    made = Linear8bitLt(layer.in_features, layer.out_features, layer.bias is not None, has_fp16_weights=False)
    made.weight, made.bias = Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False), layer.bias
    return made


def _in_4(layer: nn.Linear, dtype: torch.dtype) -> Linear4bit:
    """4-bit NormalFloat, its scales quantised once more (Dettmers et al. 2023, arXiv:2305.14314)."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    made = Linear4bit(layer.in_features, layer.out_features, layer.bias is not None, dtype, quant_type="nf4")
    made.weight = Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", module=made)
    made.bias = layer.bias
    return made


MADE: Mapping[str, Callable[[nn.Linear, torch.dtype], nn.Module]] = {"8bit": _in_8, "4bit": _in_4}
