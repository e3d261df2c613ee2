"""From live adapters to the tensors of a file: one alpha for all layers, no start to take off, DoRA plain if wished."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from patina.lora.delta import Change, grown
from patina.lora.forms import folded, scale
from patina.lora.inject import Adapter, adapters
from patina.lora.names import IN_FILE
from patina.lora.svd import leading


class Baked(NamedTuple):
    """What DoRA became as plain LoRA."""

    state: dict[str, Tensor]
    """As `packed` gives it."""
    lost: float
    """Frobenius norm of what the rank does not hold, by that of the whole change."""


def packed(modules: Mapping[str, nn.Module], alpha: float) -> dict[str, Tensor]:
    """The live weights as `file.write` takes them, named as in `inject.state`.

    `forms.scale` with `alpha` is then every layer's scale, whatever patterns, rsLoRA or a start have made it: readers
    get alphas wrong that differ from layer to layer.
    """
    found = {}
    for component, module in modules.items():
        for path, adapter in adapters(module).items():
            parts = _with_one_alpha(adapter, alpha)
            found |= {f"{component}.{path}.{name}": part for name, part in parts.items()}
    return found


def baked(modules: Mapping[str, nn.Module], alpha: float, rank: int) -> Baked:
    """The same for DoRA as a plain LoRA of `rank`, for readers that know no magnitude: the nearest of that rank."""
    found, lost, whole = {}, 0.0, 0.0
    for component, module in modules.items():
        for path, adapter in adapters(module).items():
            inside = {IN_FILE[name]: part.cpu() for name, part in _with_one_alpha(adapter, alpha).items()}
            change = grown(Change(inside, alpha), adapter.base.detach().cpu())
            parts, rest = nearest(change, alpha, rank)
            found |= {f"{component}.{path}.{name}": part for name, part in parts.items()}
            lost, whole = lost + rest**2, whole + change.square().sum().item()
    return Baked(found, (lost / whole) ** 0.5 if whole else 0.0)


def nearest(change: Tensor, alpha: float, rank: int) -> tuple[dict[str, Tensor], float]:
    """The LoRA of `rank` (or of the matrix's own, where that is less) nearest to a change [out,in] or [out,in,k,k].

    fp32, to be scaled by alpha / its rank, with the Frobenius norm of what it leaves out.
    """
    matrix = change.flatten(1)
    up, down = leading(matrix, rank, torch.Generator().manual_seed(0)).factors()
    lost = (matrix - up @ down).norm().item()
    kernel, rank = change.shape[2:], len(down)
    up, down = up.reshape(*up.shape, *(1 for _ in kernel)), down.reshape(rank, change.shape[1], *kernel)
    return {"lora_A": down.float(), "lora_B": (up * (rank / alpha)).float()}, lost


def _with_one_alpha(adapter: Adapter, alpha: float) -> dict[str, Tensor]:
    parts: dict[str, Tensor] = {name: weight.detach() for name, weight in adapter.weights.items()}
    if adapter.start:  # up @ down - up0 @ down0 is one product of twice the rank
        first = adapter.start
        parts = {
            "lora_A": torch.cat([parts["lora_A"], first["lora_A"]]),
            "lora_B": torch.cat([parts["lora_B"], -first["lora_B"]], dim=1),
        }
    return folded(parts, adapter.scale / scale(parts, alpha))
