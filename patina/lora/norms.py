"""How long each layer's change is, and keeping it below a limit."""

import torch
from torch import Tensor, nn

from patina.lora.forms import LORA, form_of
from patina.lora.inject import Adapter, adapters


@torch.no_grad()
def limit(modules: list[nn.Module], longest: float) -> None:
    """Scale down each layer's factors, all by the same, so that its change's Frobenius norm is at most `longest`.

    sd-scripts' `scale_weight_norms`; DoRA's lengths are left alone, as there. Nothing here waits for the device.
    """
    for module in modules:
        for adapter in adapters(module).values():
            factors = [weight for name, weight in adapter.weights.items() if name in form_of(adapter.weights).factors]
            share = (longest / length(adapter)).clamp(max=1.0) ** (1 / len(factors))
            for factor in factors:
                factor.mul_(share)


def length(adapter: Adapter) -> Tensor:
    """Frobenius norm of one layer's change, 0-dim fp32; infinitely small where it is zero.

    A LoRA's product is not formed: |B A|^2 is the sum over (B^T B) * (A A^T).
    """
    form = form_of(adapter.weights)
    if form is not LORA:
        norm = form.product(adapter.weights).norm()
    else:
        down, up = (adapter.weights[name].double().flatten(1) for name in form.factors)
        norm = torch.sum((up.mT @ up) * (down @ down.mT)).clamp(min=0).sqrt().float()
    return (adapter.scale * norm).clamp(min=torch.finfo(torch.float32).tiny)
