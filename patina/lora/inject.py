"""Put LoRA on a frozen module through peft, and see its live weights."""

import difflib
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from patina.errors import PatinaError
from patina.family import ends_in

ADAPTER = "default"
"""What peft calls our adapter."""


class Adapter(NamedTuple):
    """One layer's live LoRA: its output grows by scale * B(A(input))."""

    A: nn.Parameter
    """[r,in], or [r,in,k,k] for a convolution; fp32."""
    B: nn.Parameter
    """[out,r], or [out,r,1,1] for a convolution; fp32."""
    scale: float
    """alpha / rank."""


def adapt(module: nn.Module, targets: Sequence[str], rank: int, alpha: float, seed: int) -> list[str]:
    """Freeze `module` in eval mode and add a trainable LoRA to the layers whose paths end in one of `targets`.

    Returns the adapted layers' dotted paths in the module's order. A is Kaiming-uniform and a function of (seed, path)
    alone, B is zero, both fp32 whatever the base's dtype; the global random state is left as it was. Raises
    PatinaError when one of `targets` names no layer. A module can be adapted once.
    """
    assert not adapters(module), "this module carries LoRA already"
    paths = _match(module, targets)
    config = LoraConfig(r=rank, target_modules="|".join(re.escape(path) for path in paths))
    config.lora_alpha = alpha  # pyright: ignore[reportAttributeAccessIssue]  # declared int; peft computes with floats
    module.requires_grad_(False)
    with torch.random.fork_rng(devices=()):
        inject_adapter_in_model(config, module, ADAPTER)
    for path, adapter in adapters(module).items():
        _initialise(adapter, seed, path)
    module.eval()
    return paths


def adapters(module: nn.Module) -> dict[str, Adapter]:
    """The live LoRA weights by the adapted layer's path: what is changed in them is changed in the module."""
    return {
        path: Adapter(_weight(module, path, "A"), _weight(module, path, "B"), layer.scaling[ADAPTER])
        for path, layer in module.named_modules()
        if isinstance(layer, LoraLayer)
    }


def layers(module: nn.Module) -> dict[str, nn.Module]:
    """The layers that LoRA can go on, linear and 2-D convolution, by path; the same before and after `adapt`."""
    carriers = {path: layer for path, layer in module.named_modules() if isinstance(layer, LoraLayer)}
    inside = tuple(f"{path}." for path in carriers)
    return {
        path: layer
        for path, layer in module.named_modules()
        if path in carriers or (isinstance(layer, nn.Linear | nn.Conv2d) and not path.startswith(inside))
    }


def state(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The LoRA weights of all components, `component.path.lora_A` and `.lora_B`; detached, sharing memory."""
    return {
        f"{component}.{path}.{name}": weight.detach()
        for component, module in modules.items()
        for path, adapter in adapters(module).items()
        for name, weight in (("lora_A", adapter.A), ("lora_B", adapter.B))
    }


def load_state(modules: Mapping[str, nn.Module], saved: Mapping[str, Tensor]) -> None:
    """Copy what `state` gave back into the live weights.

    Raises PatinaError, and changes nothing, when names or shapes differ from those of the live weights.
    """
    live = state(modules)
    unlike = sorted(live.keys() ^ saved.keys()) or [key for key in live if live[key].shape != saved[key].shape]
    if unlike:
        raise PatinaError(
            f"the saved LoRA does not fit this run: {len(unlike)} tensors differ, first {unlike[0]}; "
            "resume with the lora_rank and lora_target it was saved with"
        )
    for key, weight in live.items():
        weight.copy_(saved[key])


def _weight(module: nn.Module, path: str, which: str) -> nn.Parameter:
    return module.get_parameter(f"{path}.lora_{which}.{ADAPTER}.weight")


def _initialise(adapter: Adapter, seed: int, path: str) -> None:
    """peft's default, drawn anew in fp32: peft's own draw has been through the base's dtype, and the global state."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {path}".encode()))
    start = torch.empty(adapter.A.shape)
    nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
    adapter.A.data = start.to(adapter.A.device)
    adapter.B.data = torch.zeros_like(adapter.B, dtype=torch.float32)


def _match(module: nn.Module, targets: Sequence[str]) -> list[str]:
    known = list(layers(module))
    for target in targets:
        if not any(ends_in(path, (target,)) for path in known):
            raise PatinaError(_no_layer(module, target, known))
    return [path for path in known if ends_in(path, targets)]


def _no_layer(module: nn.Module, target: str, known: Sequence[str]) -> str:
    """`to_out` is near `to_out.0`, `fc` near `mlp.fc1`: compare with the last one, two and three parts of paths."""
    ends = {".".join(path.split(".")[-parts:]) for path in known for parts in (1, 2, 3)}
    names = sorted(end for end in ends if not end[0].isdigit())
    near = difflib.get_close_matches(target, names, n=3, cutoff=0.3) or names[:8]
    return f"LoRA target {target!r} names no layer of this {type(module).__name__}; nearest: {', '.join(near)}"
