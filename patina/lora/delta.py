"""What one module's tensors in a LoRA file change its weight by: the plain formula of each algorithm, in float64."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from patina.lora import forms
from patina.lora.names import DOWN, UP

MID, DORA = "lora_mid.weight", "dora_scale"
DIFF, BIAS = "diff", "diff_b"
LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
LOHA_CORES = ("hada_t1", "hada_t2")
LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")


class Change(NamedTuple):
    """One module as a file has it."""

    parts: Mapping[str, Tensor]
    """Tensors by what sd-scripts and LyCORIS call them after the module's name; alpha is not among them."""
    alpha: float | None
    """None where the file gives none: the scale is then 1."""


class Thin(NamedTuple):
    """A delta as the product of two thin matrices in float64, up @ down, alpha / rank worked into `up`."""

    up: Tensor
    """[out,r]."""
    down: Tensor
    """[r,in] or [r,in*k*k]."""


def algorithm(change: Change) -> str:
    """`lora`, `lora (Tucker)`, `loha`, `lokr`, `full`, ..., with `dora + ` before it where there is a dora_scale."""
    parts = change.parts
    name = next(name for name, formula in FORMULAS.items() if formula.fits(parts))
    tucker = " (Tucker)" if any(core in parts for core in (MID, *LOHA_CORES, "lokr_t2")) else ""
    return ("dora + " if DORA in parts else "") + name + tucker


def rank(change: Change) -> int | None:
    """What alpha is divided by; None where nothing is (a whole difference, a LoKr of two whole factors)."""
    for name in (DOWN, "hada_w1_b", "lokr_w2_b", "lokr_w1_b"):
        if name in change.parts:
            return change.parts[name].shape[0]
    return None


def scale(change: Change) -> float:
    """alpha / rank."""
    divisor = rank(change)
    return 1.0 if change.alpha is None or divisor is None else change.alpha / divisor


def delta(change: Change) -> Tensor:
    """W grows by this, before a dora_scale is applied: [out,in] or [out,in*k*k] in float64, kernels flattened."""
    formula = next(formula for formula in FORMULAS.values() if formula.fits(change.parts))
    return formula.delta({name: tensor.double() for name, tensor in change.parts.items()}).mul_(scale(change))


def shape(change: Change) -> torch.Size:
    """Of `delta`, found without computing it. Raises RuntimeError where the tensors do not fit each other."""
    return delta(Change({name: tensor.to("meta") for name, tensor in change.parts.items()}, change.alpha)).shape


def thin(change: Change) -> Thin | None:
    """The delta as two factors where the file has it so: a LoRA, Tucker's too, without a dora_scale."""
    if DOWN not in change.parts or DORA in change.parts:
        return None
    up, down = _factors({name: tensor.double() for name, tensor in change.parts.items()})
    return Thin(up * scale(change), down)


def grown(change: Change, weight: Tensor) -> Tensor:
    """The base's weight -> its growth at strength 1, W' - W, in the weight's shape and in float64.

    With a dora_scale m, W' = m * (W + delta) / |W + delta|, the norm over all axes but the one that m runs along
    (arXiv:2402.09353; LyCORIS has m along either axis). The delta must have as many numbers as the weight.
    """
    plain = delta(change).view_as(weight)
    if DORA not in change.parts:
        return plain
    weight = weight.double()
    magnitude = change.parts[DORA].double()
    along = 0 if magnitude.shape[0] > 1 or weight.shape[0] == 1 else 1
    merged = weight + plain
    norms = forms.column_norms(merged, along)
    return merged * (magnitude.reshape(norms.shape) / norms) - weight


class Formula(NamedTuple):
    """How one algorithm's tensors are told, and what they mean."""

    fits: Callable[[Mapping[str, Tensor]], bool]
    delta: Callable[[Mapping[str, Tensor]], Tensor]


def _factors(parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    up, down = parts[UP].flatten(1), parts[DOWN].flatten(1)
    if MID not in parts:
        return up, down
    core = torch.einsum("nmkl,mj->njkl", parts[MID], down)  # [r,r,k,k] and [r,in]
    return up, core.flatten(1)


def _lora(parts: Mapping[str, Tensor]) -> Tensor:
    up, down = _factors(parts)
    return up @ down


FORMULAS: Mapping[str, Formula] = {
    "lora": Formula(lambda parts: {DOWN, UP} <= parts.keys() <= {DOWN, UP, MID, DORA}, _lora),
    "loha": Formula(lambda parts: set(LOHA) <= parts.keys() <= {*LOHA, *LOHA_CORES, DORA}, forms.LOHA.product),
    "lokr": Formula(lambda parts: _is_lokr(parts.keys()), forms.LOKR.product),
    "full": Formula(lambda parts: DIFF in parts and parts.keys() <= {DIFF, BIAS}, lambda parts: parts[DIFF].flatten(1)),
}


def _is_lokr(names) -> bool:
    halves = all(f"lokr_w{n}" in names or {f"lokr_w{n}_a", f"lokr_w{n}_b"} <= set(names) for n in (1, 2))
    return halves and set(names) <= {*LOKR, DORA}
