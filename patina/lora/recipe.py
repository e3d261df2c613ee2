"""How the layers of a module are adapted: by which algorithm, of what size, from which start, with what dropped."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from peft.tuners.lora import LoraLayer
from peft.tuners.lycoris_utils import LycorisLayer
from torch import nn

Carrier = LoraLayer | LycorisLayer
"""A layer of peft's that stands where the layer it adapts stood, and holds it."""
ADAPTER = "default"
"""What peft calls our adapter."""

Algo = Literal["lora", "locon", "loha", "lokr", "dora"]
Init = Literal["kaiming", "gaussian", "pissa", "olora"]


class Size(NamedTuple):
    """One layer's adapter: its rank, and what the factors' product is multiplied by."""

    rank: int
    scale: float


def _everywhere_the_same(path: str, layer: nn.Module) -> Size | None:
    return None


@dataclass(frozen=True)
class Recipe:
    """What `inject.adapt` needs to know beyond targets, rank, alpha and seed."""

    algo: Algo = "lora"
    lengths: Literal["columns", "rows"] = "columns"
    """DoRA: whose lengths are trained; `columns`, one for each input, or `rows`, one for each output."""
    factor: int = -1
    """LoKr: the size that the smaller matrix should have at most; -1: as near to square as the layer allows."""
    init: Init = "kaiming"
    dropout: float = 0.0
    """Share of a LoRA's inputs left out in a training step."""
    rank_dropout: float = 0.0
    """Share of the ranks (LoHa, LoKr: of the weight's rows) left out."""
    module_dropout: float = 0.0
    """Share of the adapted layers left out."""
    size: Callable[[str, nn.Module], Size | None] = _everywhere_the_same
    """(path, layer) -> its size; None where it has the common rank and alpha."""


PLAIN = Recipe()
"""A plain LoRA of one size."""
