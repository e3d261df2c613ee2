"""Start a run's LoRA from a file."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from patina.errors import PatinaError
from patina.lora import delta
from patina.lora.foreign import TEXT, read_any
from patina.lora.inject import Adapter, adapters
from patina.lora.names import Place
from patina.lora.pack import nearest


def start_from(path: Path, modules: Mapping[str, nn.Module]) -> list[str]:
    """Set the live LoRA (component -> adapted module) to a file's; returns what to tell the user, line by line.

    Any program's file will do (`foreign.read_any`), of any form and rank: a larger one is cut to the nearest LoRA of
    ours (by SVD), a smaller one leaves the rest of ours free to learn. Raises PatinaError for a file that is no LoRA,
    or of which nothing fits a layer.
    """
    found, live = read_any(path), _live(modules)
    used, whole, lost = 0, 0.0, 0.0
    unused = list(found.unknown)
    for place, change in found.changes.items():
        adapter = live.get(place)
        if adapter is None or delta.shape(change) != adapter.base.flatten(1).shape:
            unused.append(found.names[place])
            continue
        growth = delta.grown(change, adapter.base)
        used += 1
        whole += growth.square().sum().item()
        lost += nearest_to(adapter.A, adapter.B, adapter.scale, growth) ** 2
    if not used:
        raise PatinaError(f"init_lora: {path} holds none of the {len(live)} layers that this run trains; leave it out")
    lines = [f"{path.name}: {used} of its {len(found.changes)} layers start this LoRA's {len(live)}"]
    if lost > 1e-6 * whole:
        lines.append(f"its rank is higher: {(lost / whole) ** 0.5:.1%} of its change is left out")
    return lines + ([f"not used: {', '.join(unused[:4])}{', ...' if len(unused) > 4 else ''}"] if unused else [])


def _live(modules: Mapping[str, nn.Module]) -> dict[Place, Adapter]:
    """The live adapters, their places as `read_any` has them: without the level that some text encoders have."""
    return {
        Place(name, path.removeprefix(TEXT)): adapter
        for name, module in modules.items()
        for path, adapter in adapters(module).items()
    }


@torch.no_grad()
def nearest_to(down: nn.Parameter, up: nn.Parameter, scale: float, growth: Tensor) -> float:
    """Make scale * up @ down the nearest to a growth; returns what is lost (Frobenius norm).

    Ranks that the growth does not need keep the first matrix they were drawn with, and zeros in the second.
    """
    rank = len(down)
    parts, lost = nearest(growth, scale * rank, rank)
    needed = parts["lora_B"].flatten(1).norm(dim=0) > 1e-6 * parts["lora_B"].norm()
    used = int(needed.sum())
    down[:used] = parts["lora_A"][:used].to(down)
    up.zero_()
    up[:, :used] = (parts["lora_B"][:, :used] * (rank / len(parts["lora_A"]))).to(up)
    return lost
