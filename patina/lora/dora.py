"""DoRA: beside a LoRA, the length of each column or row of the weight is trained (Liu et al. 2024, arXiv:2402.09353).

The paper's m is [1,in], a number for each column of W [out,in]. The authors' code, peft and LyCORIS' default keep one
for each output instead. A1111, Forge, ComfyUI and InvokeAI read a `dora_scale` of the output axis wrongly; they and
SD.Next read one of the input axis right, so for pictures we train that one, which diffusers drops like the other: see
`pack.baked`. Language models' adapters are read by peft, so for texts we train a number for each output.
"""

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from patina.lora.forms import LORA, column_norms
from patina.lora.recipe import ADAPTER


class Magnitude(nn.Module):
    """Holds one layer's lengths where peft keeps those of its own DoRA."""

    def __init__(self, lengths: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(lengths)


def scale_columns(layer: nn.Module) -> None:
    """Make a layer that carries LoRA a DoRA layer with a number for each input; its output stays as it is."""
    assert isinstance(layer, LoraLayer)
    layer.lora_magnitude_vector[ADAPTER] = Magnitude(_norms(layer, along=1))
    layer.register_forward_pre_hook(_scaled)


def scale_rows(layer: nn.Module) -> None:
    """The same with a number for each output, for linear layers."""
    assert isinstance(layer, LoraLayer)
    layer.lora_magnitude_vector[ADAPTER] = Magnitude(_norms(layer, along=0))
    layer.register_forward_hook(_scaled_rows)


def _scaled(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A weight whose columns are scaled, applied to x, is the weight applied to x scaled: [...,in] or [B,in,h,w]."""
    assert isinstance(layer, LoraLayer)
    x, *rest = inputs
    return (x * _growth(layer, along=1).to(x.dtype), *rest)


def _scaled_rows(layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """[...,out]: what is not the bias is scaled, as peft does."""
    assert isinstance(layer, LoraLayer)
    bias, growth = layer.get_base_layer().bias, _growth(layer, along=0).flatten().to(output.dtype)
    return (output - bias) * growth + bias if isinstance(bias, Tensor) else output * growth


def _growth(layer: LoraLayer, along: int) -> Tensor:
    """What each column or row is multiplied by, [1,in] or [out,1]."""
    return layer.lora_magnitude_vector.get_parameter(f"{ADAPTER}.weight") / _norms(layer, along)


@torch.no_grad()
def _norms(layer: LoraLayer, along: int) -> Tensor:
    """|W + D| of each column or row, fp32, a constant to the gradient (section 4.3 of the paper)."""
    weight = layer.get_base_layer().weight
    assert isinstance(weight, Tensor)
    factors = {name: getattr(layer, name).get_parameter(f"{ADAPTER}.weight") for name in LORA.factors}
    with torch.autocast(weight.device.type, enabled=False):
        change = layer.scaling[ADAPTER] * LORA.product(factors)
        return column_norms(weight.float() + change.reshape(weight.shape), along)
