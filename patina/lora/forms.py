"""The forms that a change to a weight is kept in: of which factors it is the product, by the formulas that readers use.

A layer's tensors are named here as in `inject.state`: `lora_A`, `lora_B`, `hada_w1_a`, ..., and `dora_scale`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Parts = Mapping[str, Tensor]

MAGNITUDE = "dora_scale"
"""DoRA's length of each input column, [1,in] or [1,in,1,1], or in text mode of each output row, [out,1]; no factor of
the product."""


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
    return _hada(parts, 1) * _hada(parts, 2)


def _hada(parts: Parts, which: int) -> Tensor:
    """One of the two factors that are multiplied number by number; with a core in files of other programs (Tucker)."""
    a, b = parts[f"hada_w{which}_a"], parts[f"hada_w{which}_b"]
    core = parts.get(f"hada_t{which}")
    return a @ b.flatten(1) if core is None else _tucker(core, a, b)


def _lokr(parts: Parts) -> Tensor:
    """Yeh et al. 2023 (arXiv:2309.14859) as LyCORIS computes it: the Kronecker product of w1 and w2.

    [a,b] and [c,d*k*k] -> [a*c,b*d*k*k]; other programs also write w1 as two factors, and w2 with a core (Tucker).
    """
    first = parts["lokr_w1"] if "lokr_w1" in parts else parts["lokr_w1_a"] @ parts["lokr_w1_b"]
    if "lokr_t2" in parts:
        second = _tucker(parts["lokr_t2"], parts["lokr_w2_a"], parts["lokr_w2_b"])
    elif "lokr_w2" in parts:
        second = parts["lokr_w2"]
    else:
        second = parts["lokr_w2_a"] @ parts["lokr_w2_b"].flatten(1)
    return torch.kron(first, second.flatten(1).contiguous())


def _tucker(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """[r,r,k,k], [r,out] and [r,in] -> [out,in*k*k]."""
    return torch.einsum("ijkl,jr,ip->prkl", core, b, a).flatten(1)


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


def column_norms(weight: Tensor, along: int = 1) -> Tensor:
    """Length of each slice of a weight [out,in] or [out,in,k,k] along an axis: [1,in] or [1,in,1,1]; none is zero."""
    rest = tuple(axis for axis in range(weight.ndim) if axis != along)
    return torch.linalg.vector_norm(weight, dim=rest, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
