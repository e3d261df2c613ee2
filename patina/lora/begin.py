"""The weights that an adapter starts from: drawn, or taken from the layer's own weight (PiSSA, OLoRA)."""

import math
import zlib
from collections.abc import Mapping

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Generator, Tensor, nn

from patina.errors import PatinaError
from patina.lora.forms import form_of
from patina.lora.recipe import ADAPTER, Carrier, Init
from patina.lora.svd import Leading, leading

FIXED = "start"
"""What peft calls the second, fixed adapter that takes a start's product off again."""


def draw(layer: Carrier, weights: Mapping[str, nn.Parameter], init: Init, seed: int, path: str) -> None:
    """Give a new layer's factors their first values, fp32 on their device, such that the model stays as it is.

    `kaiming` is peft's default, drawn anew: peft's own draw has been through the base's dtype, and the global state.
    """
    generator = Generator().manual_seed(zlib.crc32(f"{seed} {path}".encode()))
    if init in FROM_WEIGHT:
        assert isinstance(layer, LoraLayer)
        _from_weight(layer, weights, init, generator, path)
        return
    zero, rank = form_of(weights).zero, layer.r[ADAPTER]
    for name, weight in weights.items():
        first = torch.zeros(weight.shape)
        if name != zero and init == "gaussian":
            nn.init.normal_(first, std=1 / rank, generator=generator)
        elif name != zero:
            nn.init.kaiming_uniform_(first, a=math.sqrt(5), generator=generator)
        weight.data = first.to(weight.device)


def _from_weight(
    layer: LoraLayer, weights: Mapping[str, nn.Parameter], init: Init, generator: Generator, path: str
) -> None:
    """Start from a part of the layer's weight, and let a fixed second LoRA take the same off again.

    The papers take it off the weight instead. The model is the same, but here the base keeps its every bit, and what
    is exported is the difference to it.
    """
    base, scale, rank = layer.get_base_layer().weight, layer.scaling[ADAPTER], layer.r[ADAPTER]
    assert isinstance(base, Tensor)
    matrix = base.detach().float().flatten(1)
    if rank > min(matrix.shape):
        raise PatinaError(
            f"network.init: {init} needs a rank of at most {min(matrix.shape)} in {path}, but it is {rank}; "
            "write a smaller rank, or init: kaiming"
        )
    up, down = FROM_WEIGHT[init](matrix, rank, scale, generator)
    layer.update_layer(FIXED, rank, lora_alpha=1, config=LoraConfig(r=rank))
    layer.set_adapter([ADAPTER, FIXED])
    layer.scaling[FIXED] = -scale
    for name, first in (("lora_A", down), ("lora_B", up)):
        shaped = first.reshape(weights[name].shape).contiguous()
        weights[name].data = shaped
        fixed = getattr(layer, name)[FIXED].weight.requires_grad_(False)
        fixed.data = shaped.clone()


def _principal(matrix: Tensor, rank: int, scale: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Meng et al. 2024 (arXiv:2404.02948): the largest singular values, shared evenly; up [out,r], down [r,in]."""
    left, values, right = leading(matrix, rank, generator)
    return Leading(left, values / scale, right).factors()


def _orthonormal(matrix: Tensor, rank: int, scale: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Büyükakyüz 2024 (arXiv:2406.01775): the first columns of Q and rows of R of the weight's QR decomposition."""
    columns, rows = torch.linalg.qr(matrix)
    return columns[:, :rank], rows[:rank]


FROM_WEIGHT = {"pissa": _principal, "olora": _orthonormal}
"""(weight [out,in*k*k], rank, scale, generator) -> up [out,r], down [r,in*k*k]."""
