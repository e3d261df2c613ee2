"""The forms that a change to a weight is kept in: of which factors it is the product, by the formulas that readers use.

A layer's tensors are named here as in `inject.state`: `lora_A`, `lora_B`, `hada_w1_a`, ..., and `dora_scale`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Parts = Mapping[str, Tensor]

MAGNITUDE = "dora_scale"
"""DoRA's length of each input column, [1,in] or [1,in,1,1]; no factor of the product."""


@dataclass(frozen=True)
class Form:
    """One way of writing a matrix [out,in*k*k] with fewer numbers than it has."""

    factors: tuple[str, ...]
    """What a layer may hold, in the order of the flat buffer; the product is linear in each of them."""
    zero: str
    """The factor that is zero at the start, so that the product is."""
    fold: str
    """The factor that takes up numbers by which the whole product is multiplied."""
    rank: str
    """The factor whose first size is the rank; in a layer without it alpha means nothing."""
    product: Callable[[Parts], Tensor]
    """Factors -> [out,in*k*k], or any shape that holds the same numbers in the same order."""


def _lora(parts: Parts) -> Tensor:
    """Hu et al. 2021 (arXiv:2106.09685): up @ down; a convolution's kernel is part of down."""
    return parts["lora_B"].flatten(1) @ parts["lora_A"].flatten(1)


def _loha(parts: Parts) -> Tensor:
    """Hyeon-Woo et al. 2021 (arXiv:2108.06098) as LyCORIS computes it: (w1_a @ w1_b) * (w2_a @ w2_b)."""
    return (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])


def _lokr(parts: Parts) -> Tensor:
    """Yeh et al. 2023 (arXiv:2309.14859) as LyCORIS computes it: the Kronecker product of w1 and w2."""
    first = parts["lokr_w1"]
    second = parts["lokr_w2"] if "lokr_w2" in parts else parts["lokr_w2_a"] @ parts["lokr_w2_b"]
    return torch.kron(first.reshape(*first.shape, *(1,) * (second.ndim - 2)), second.contiguous())


LORA = Form(("lora_A", "lora_B"), zero="lora_B", fold="lora_B", rank="lora_A", product=_lora)
LOHA = Form(
    ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    zero="hada_w2_b",
    fold="hada_w1_a",
    rank="hada_w1_b",
    product=_loha,
)
LOKR = Form(
    ("lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b"),
    zero="lokr_w1",
    fold="lokr_w1",
    rank="lokr_w2_b",
    product=_lokr,
)
FORMS = (LORA, LOHA, LOKR)
PARTS = (*(factor for form in FORMS for factor in form.factors), MAGNITUDE)
"""Every name that a layer's tensors may have."""


def form_of(parts: Parts) -> Form:
    """The form that a layer's tensors are in, told by the factor that each of its layers has."""
    return next(form for form in FORMS if form.fold in parts)


def scale(parts: Parts, alpha: float) -> float:
    """What readers multiply the product by: alpha / rank; 1 for a LoKr of two whole matrices, as LyCORIS has it."""
    rank = form_of(parts).rank
    return alpha / len(parts[rank]) if rank in parts else 1.0


def folded(parts: Parts, by: float) -> dict[str, Tensor]:
    """The same tensors with a product `by` times as large."""
    fold = form_of(parts).fold
    return {**parts, fold: parts[fold] * by}


def delta(parts: Parts, alpha: float, base: Tensor) -> Tensor:
    """What a layer's tensors add to its weight `base`: fp64 in the base's shape, on the CPU.

    With a magnitude that is m * (W + D) / |W + D| - W, the norm over all but the input axis (Liu et al. 2024,
    arXiv:2402.09353, whose m is [1,in]).
    """
    exact = {name: tensor.detach().to("cpu", torch.float64) for name, tensor in parts.items()}
    change = (scale(parts, alpha) * form_of(parts).product(exact)).reshape(base.shape)
    if MAGNITUDE not in parts:
        return change
    weight = base.detach().to("cpu", torch.float64)
    return (weight + change) * (exact[MAGNITUDE] / column_norms(weight + change)) - weight


def column_norms(weight: Tensor) -> Tensor:
    """Length of each input column of a weight [out,in] or [out,in,k,k] -> [1,in] or [1,in,1,1]; none is zero."""
    rest = tuple(axis for axis in range(weight.ndim) if axis != 1)
    return torch.linalg.vector_norm(weight, dim=rest, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
