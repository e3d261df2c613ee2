"""One flat buffer a component: its LoRA weights and their gradients become views of two long tensors.

Clearing, clipping, all-reduce and the 8-bit optimizer are then one call each instead of one a layer.
"""

from collections.abc import Mapping

import torch
from torch import nn

from patina.lora.inject import adapters


def flatten(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Move the LoRA weights of each module into one fp32 parameter [n] with a zero gradient; return it by component.

    The layers' own parameters stay, as views: what the optimizer does to the flat one they see, and what backward
    adds to theirs is in its gradient. Their gradients must never be set to None.
    """
    return {name: _flat(module) for name, module in modules.items()}


def _flat(module: nn.Module) -> nn.Parameter:
    weights = [weight for adapter in adapters(module).values() for weight in (adapter.A, adapter.B)]
    assert weights, "flatten comes after adapt"
    assert all(weight.dtype == torch.float32 for weight in weights), "LoRA masters are fp32"
    flat = nn.Parameter(torch.cat([weight.detach().flatten() for weight in weights]))
    flat.grad = torch.zeros_like(flat)
    start = 0
    for weight in weights:
        end = start + weight.numel()
        weight.data = flat.data[start:end].view(weight.shape)
        weight.grad = flat.grad[start:end].view(weight.shape)
        start = end
    return flat
