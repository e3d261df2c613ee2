"""Start a run's LoRA from a file."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from patina.errors import PatinaError
from patina.family import Family
from patina.lora.file import read
from patina.lora.inject import adapters
from patina.lora.names import Place, module_names
from patina.lora.pack import nearest


def start_from(path: Path, modules: Mapping[str, nn.Module], family: Family) -> list[str]:
    """Set the live LoRA (component -> adapted module) to a file's; returns what to tell the user, line by line.

    Another rank is fitted: a larger one in the file is cut to the nearest LoRA of ours (by SVD), a smaller one leaves
    the rest of ours free to learn. Raises PatinaError for a file that is no LoRA of this family, or fits no layer.
    """
    deltas, unknown = _deltas(path, modules, family)
    live = {
        Place(name, where): adapter for name, module in modules.items() for where, adapter in adapters(module).items()
    }
    used, whole, lost = 0, 0.0, 0.0
    for place, delta in deltas.items():
        if place in live and delta.numel() == live[place].base.numel():
            used += 1
            whole += delta.square().sum().item()
            lost += _set(live[place].A, live[place].B, live[place].scale, delta.reshape(live[place].base.shape)) ** 2
    if not used:
        raise PatinaError(f"init_lora: {path} holds none of the {len(live)} layers that this run trains; leave it out")
    lines = [f"{path.name}: {used} of its {len(deltas) + len(unknown)} layers start this LoRA's {len(live)}"]
    if lost > 1e-6 * whole:
        lines.append(f"its rank is higher: {(lost / whole) ** 0.5:.1%} of its change is left out")
    unused = [*unknown, *(f"{place.component}.{place.path}" for place in deltas if place not in live)]
    return lines + ([f"not used: {', '.join(unused[:4])}{', ...' if len(unused) > 4 else ''}"] if unused else [])


def _deltas(path: Path, modules: Mapping[str, nn.Module], family: Family) -> tuple[dict[Place, Tensor], list[str]]:
    """What a file adds to each known layer's weight, in fp64, and the names that stand for no layer."""
    known, found = module_names(family, modules), read(path).layers
    unknown = [name for name in found if name not in known]
    deltas = {}
    for name, layer in found.items():
        if name in known:
            up, down = layer.up.double().flatten(1), layer.down.double().flatten(1)
            deltas[known[name]] = up @ down * (layer.alpha / len(down))
    return deltas, unknown


@torch.no_grad()
def _set(down: nn.Parameter, up: nn.Parameter, scale: float, delta: Tensor) -> float:
    """Make scale * up @ down the nearest to a delta; returns what is lost (Frobenius norm).

    Ranks that the delta does not need keep the first matrix they were drawn with, and zeros in the second.
    """
    rank = len(down)
    parts, lost = nearest(delta, scale * rank, rank)
    needed = parts["lora_B"].flatten(1).norm(dim=0) > 1e-6 * parts["lora_B"].norm()
    used = int(needed.sum())
    down[:used] = parts["lora_A"][:used].to(down)
    up.zero_()
    up[:, :used] = (parts["lora_B"][:, :used] * (rank / len(parts["lora_A"]))).to(up)
    return lost
