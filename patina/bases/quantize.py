"""Keeping a frozen base's linear layers in 8 or 4 bits: less memory for them."""

# bitsandbytes' weights take more arguments than `nn.Parameter`, as which its stubs know them: not ours to mend.
# pyright: reportCallIssue=false

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from patina.bases.float8 import Float8Linear

if TYPE_CHECKING:
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

Quantize = Literal["none", "8bit", "4bit", "fp8"]
BY_LIBRARY = ("8bit", "4bit")
"""bitsandbytes' formats, which transformers makes while it loads."""


def quantize(module: nn.Module, how: Quantize, dtype: torch.dtype, whole: Collection[str] = ()) -> None:
    """Replace the linear layers, of weights [out,in], but for those within the paths `whole`.

    bitsandbytes' round when they are moved to a device, those in fp8 at once. Convolutions stay as they are:
    there are none for them. `dtype`: what products are computed in.
    """
    if how == "none":
        return
    kept = tuple(f"{path}." for path in whole)
    for path, layer in list(module.named_modules()):
        if type(layer) is nn.Linear and not f"{path}.".startswith(kept):
            module.set_submodule(path, MADE[how](layer, dtype))


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


def _in_fp8(layer: nn.Linear, dtype: torch.dtype) -> Float8Linear:
    """Its products take the numbers that come."""
    return Float8Linear(layer)


MADE: Mapping[str, Callable[[nn.Linear, torch.dtype], nn.Module]] = {"8bit": _in_8, "4bit": _in_4, "fp8": _in_fp8}
