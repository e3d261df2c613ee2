"""Start a run's LoRA from an adapter folder, to go on learning with other data or on another course."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from patina.errors import PatinaError
from patina.lora.inject import Adapter, adapters
from patina.lora.start import nearest_to
from patina.text.adapters import Term, read_adapter, terms_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def start_from(folder: Path, model: PreTrainedModel) -> list[str]:
    """Set the live LoRA to an adapter folder's; returns what to tell the user, line by line.

    Factors of our rank or less are taken over as they are, and ranks beyond them start as they were drawn, adding
    nothing; a larger one is cut to the nearest LoRA of ours (by SVD). Raises PatinaError for a folder that is no LoRA
    of this model, a DoRA, or one that has none of the layers that are trained.
    """
    terms, live = terms_of(read_adapter(folder), model.config), adapters(model)
    if any(term.lengths is not None for term in terms.of.values()):
        raise PatinaError(f"init_lora: {folder} is a DoRA, whose lengths a LoRA has no place for; leave it out")
    shared = [path for path in terms.of if path in live]
    whole = lost = 0.0
    for path in shared:
        _require_fit(folder, path, terms.of[path], live[path])
        size, rest = _set(live[path], terms.of[path])
        whole, lost = whole + size**2, lost + rest**2
    if not shared:
        raise PatinaError(
            f"init_lora: {folder} holds none of the {len(live)} layers that this run trains; leave it out"
        )
    lines = [f"{folder.name}: {len(shared)} of its {len(terms.of)} layers start this LoRA's {len(live)}"]
    if lost > 1e-6 * whole:
        lines.append(f"its rank is higher: {(lost / whole) ** 0.5:.1%} of its change is left out")
    unused = [*(path for path in terms.of if path not in live), *terms.left]
    return lines + ([f"not used: {', '.join(unused[:4])}{', ...' if len(unused) > 4 else ''}"] if unused else [])


def _require_fit(folder: Path, path: str, term: Term, adapter: Adapter) -> None:
    theirs, ours = ((len(up), down.shape[1]) for up, down in ((term.up, term.down), (adapter.B, adapter.A)))
    if theirs != ours:
        raise PatinaError(f"init_lora: {folder} has {path} of {theirs}, and the base of {ours}; is it its base?")


@torch.no_grad()
def _set(adapter: Adapter, term: Term) -> tuple[float, float]:
    """Frobenius norms of a layer's change, and of what is left out of it."""
    growth = term.scale * (term.up.float() @ term.down.float())
    size, rank = growth.norm().item(), len(term.down)
    if rank > len(adapter.A):
        return size, nearest_to(adapter.A, adapter.B, adapter.scale, growth.to(adapter.A.device))
    adapter.A[:rank] = term.down.to(adapter.A)
    adapter.B.zero_()
    adapter.B[:, :rank] = (term.up.float() * (term.scale / adapter.scale)).to(adapter.B)
    return size, 0.0
