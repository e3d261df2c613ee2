"""Join LoRAs, and bring any of them to a rank: exactly where factors can be joined, else by singular values."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from patina.errors import PatinaError
from patina.lora import delta
from patina.lora.basefile import Base
from patina.lora.blocks import LAYOUTS, PROJECTIONS, WIDE
from patina.lora.check import fits
from patina.lora.delta import BIAS, DORA, MID, Change, Thin
from patina.lora.foreign import AnyLora
from patina.lora.names import DOWN, UP, Place
from patina.lora.svd import Keep, truncated


class Combined(NamedTuple):
    """Plain LoRA layers, and what they cost."""

    changes: dict[Place, Change]
    error: float
    """Frobenius norm of what was lost, over all layers, relative to that of the whole."""


def combine(
    loras: Sequence[tuple[AnyLora, float]], family: str, keep: Keep | None = None, base: Base | None = None
) -> Combined:
    """The weighted sum of several LoRAs (or one) as a plain LoRA.

    Without `keep` it is exact: factors are put side by side, so that ranks add up. With `keep` each layer keeps its
    largest singular values, found from the thin factors where there are such. All layers get one alpha, the largest
    rank among them, because diffusers overlooks differences; the rest is worked into the factors. Raises PatinaError
    for DoRA without a base, for other algorithms without `keep`, for layers that differ in size, and for biases.
    """
    places = dict.fromkeys(place for lora, _ in loras for place in lora.changes)
    cut, lost, whole = {}, 0.0, 0.0
    for place in places:
        terms = [(lora.changes[place], weight) for lora, weight in loras if place in lora.changes]
        total = _total(place, terms, base, exact=keep is None)
        if keep is None:
            assert isinstance(total, Thin)
            cut[place] = total
            continue
        cut[place], kept, square = truncated(total, keep)
        lost, whole = lost + square - kept, whole + square
    alpha = max(len(factors.down) for factors in cut.values())
    changes = {
        place: plain(factors, float(alpha), kernel(place, family, [lora.changes.get(place) for lora, _ in loras]))
        for place, factors in cut.items()
    }
    return Combined(changes, math.sqrt(max(lost, 0.0) / whole) if whole else 0.0)


def plain(factors: Thin, alpha: float, kernel: Sequence[int]) -> Change:
    """A layer's factors as a file has them in fp32: scaled by alpha / rank when read, kernels unfolded."""
    up, down = factors
    rank = len(down)
    up, down = (up * (rank / alpha)).float(), down.float()
    if kernel:
        up, down = up[:, :, None, None], down.view(rank, -1, *kernel)
    return Change({DOWN: down.contiguous(), UP: up.contiguous()}, alpha)


def kernel(place: Place, family: str, changes: Sequence[Change | None]) -> tuple[int, ...]:
    """The size of a layer's kernel, empty for a linear one: the file's own where a plain LoRA tells it."""
    for change in changes:
        if change and DOWN in change.parts:
            return tuple(change.parts[MID if MID in change.parts else DOWN].shape[2:])
    if place.path.endswith(WIDE):
        return (3, 3)
    small = place.path.endswith("conv_shortcut")
    small = small or (place.path.endswith(PROJECTIONS) and place.component == "unet" and not LAYOUTS[family].linear)
    return (1, 1) if small else ()


def _total(place: Place, terms: Sequence[tuple[Change, float]], base: Base | None, exact: bool) -> Thin | Tensor:
    """The weighted sum at one layer: joined factors where all have them, else the matrix."""
    where = f"{place.component} {place.path}"
    shapes = {tuple(delta.shape(change)) for change, _ in terms}
    if len(shapes) > 1:
        raise PatinaError(f"{where}: of sizes {' and '.join(map(str, sorted(shapes)))}; are these LoRAs for one base?")
    if any(BIAS in change.parts for change, _ in terms):
        raise PatinaError(f"{where}: changes its bias, too, which a LoRA cannot; bake the file into its base instead")
    factors = [(factors, weight) for change, weight in terms if (factors := delta.thin(change))]
    if len(factors) == len(terms):
        ups = [found.up * weight for found, weight in factors]
        return Thin(torch.cat(ups, dim=1), torch.cat([found.down for found, _ in factors]))
    if exact:
        kind = next(delta.algorithm(change) for change, _ in terms if delta.thin(change) is None)
        raise PatinaError(f"{where}: {kind} cannot be joined exactly; write --rank 32, or another rank to reduce it to")
    return torch.stack([_matrix(place, change, base) * weight for change, weight in terms]).sum(0)


def _matrix(place: Place, change: Change, base: Base | None) -> Tensor:
    if DORA not in change.parts:
        return delta.delta(change)
    where = f"{place.component} {place.path}"
    if base is None:
        raise PatinaError(f"{where}: what a DoRA adds depends on its base; name it with --base")
    slot = base.slots.get(place)
    if slot is None or not fits(change, slot.shape()):
        raise PatinaError(f"{where}: {base.path} has no such layer of this size; is it the DoRA's base?")
    weight = slot.weight()
    if not weight.isfinite().all():
        raise PatinaError(f"{where}: {base.path} holds NaN or infinity there; download it again")
    return delta.grown(change, weight).flatten(1)


def entries(metadata: Mapping[str, str], name: str, changes: Mapping[Place, Change]) -> dict[str, str]:
    """A header's entries for layers made anew: those of the first file, with the new name, rank and alpha."""
    ranks = [delta.rank(change) or 0 for change in changes.values()]
    alphas = [change.alpha for change in changes.values() if change.alpha is not None]
    return dict(metadata) | {
        "ss_output_name": name,
        "modelspec.title": name,
        "ss_network_module": "networks.lora",
        "ss_network_args": "{}",
        "ss_network_dim": str(max(ranks)),
        "ss_network_alpha": str(max(alphas)),
    }
