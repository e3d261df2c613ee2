"""One flat buffer a group: its adapter weights and their gradients become views of two long tensors.

Clearing, clipping, all-reduce and the 8-bit optimizer are then one call each instead of one a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from patina.lora.inject import trained

Weight = tuple[str, str, str]
"""Component, layer and part: `("unet", "mid_block.attentions.0.proj_in", "lora_A")`."""


@dataclass(frozen=True)
class Groups:
    """Which weights share a buffer and a learning rate."""

    rates: Mapping[str, float]
    """Peak learning rate by group, a component's own first; such a group has the component's name."""
    names: Mapping[Weight, str]

    @staticmethod
    def of(rates: Mapping[Weight, float], peaks: Mapping[str, float]) -> Groups:
        """Weights by their rates, those at a rate other than the component's peak under a name that has it."""
        names = {
            weight: weight[0] if rate == peaks[weight[0]] else f"{weight[0]} at {rate:g}"
            for weight, rate in rates.items()
        }
        found = {name: rates[weight] for weight, name in names.items()}
        order = list(peaks)
        first = sorted(found, key=lambda name: (order.index(name.partition(" ")[0]), name not in peaks))
        return Groups({name: found[name] for name in first}, names)


def flatten(modules: Mapping[str, nn.Module], groups: Groups | None = None) -> dict[str, nn.Parameter]:
    """Move the adapter weights of each group into one fp32 parameter [n] with a zero gradient; return it by group.

    Without `groups` each component is one. The layers' own parameters stay, as views: what the optimizer does to the
    flat one they see, and what backward adds to theirs is in its gradient. Their gradients must never be set to None.
    """
    members: dict[str, list[nn.Parameter]] = {name: [] for name in (groups.rates if groups else modules)}
    for component, module in modules.items():
        for path, weights in trained(module).items():
            for name, weight in weights.items():
                members[groups.names[component, path, name] if groups else component].append(weight)
    return {name: _flat(weights) for name, weights in members.items()}


def weight_at(modules: Mapping[str, nn.Module], flat: nn.Parameter, position: int) -> str:
    """The name of the layer's weight that has this position of a flat one: `unet.mid_block.proj_in.lora_A`."""
    assert flat.grad is not None, "flat gradients live as long as the weights"
    for component, module in modules.items():
        for path, weights in trained(module).items():
            for name, weight in weights.items():
                view = weight.grad
                if view is None or view.untyped_storage().data_ptr() != flat.grad.untyped_storage().data_ptr():
                    continue
                if 0 <= position - view.storage_offset() < view.numel():
                    return f"{component}.{path}.{name}"
    raise AssertionError("every position is a layer's")


def _flat(weights: Sequence[nn.Parameter]) -> nn.Parameter:
    assert weights, "flatten comes after adapt"
    assert all(weight.dtype == torch.float32 for weight in weights), "adapter masters are fp32"
    flat = nn.Parameter(torch.cat([weight.detach().flatten() for weight in weights]))
    flat.grad = torch.zeros_like(flat)
    start = 0
    for weight in weights:
        end = start + weight.numel()
        weight.data = flat.data[start:end].view(weight.shape)
        weight.grad = flat.grad[start:end].view(weight.shape)
        start = end
    return flat
