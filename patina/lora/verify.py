"""Read an exported file back and compare it with the live adapters, so that a bad file is found at the export."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from patina.errors import PatinaError
from patina.family import Family
from patina.lora.file import read_parts
from patina.lora.forms import LORA, Parts, folded, form_of, scale
from patina.lora.names import ALPHA, IN_FILE, UP, by_place, file_key, module_names, siblings
from patina.lora.pack import packed


def verify(
    path: Path,
    modules: Mapping[str, nn.Module],
    family: Family,
    alpha: float,
    dtype: torch.dtype,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Check that a file holds the adapters of `modules` (component -> adapted module), written with `alpha` in `dtype`.

    Names: all known to the family, none missing. Tensors: of the dtype and the live shapes, finite. Each LoRA's
    delta, alpha / rank * up @ down, is the live one within what rounding to `dtype` explains (`_tolerance`), and so is
    every number of the other forms (`_rounding`); a layer written only for a trained sibling's sake adds nothing.
    `state` is what was written where that is not the live weights themselves (`pack.baked`). Raises PatinaError naming
    the first bad tensor.
    """
    found, _ = read_parts(path)
    live = by_place(packed(modules, alpha) if state is None else state)
    known = module_names(family, modules)
    expected = {file_key(family, sibling) for place in live for sibling in siblings(family, place)}
    for name in found:
        if name not in expected:
            raise PatinaError(f"{path}: layer {name} is {'not trained' if name in known else 'unknown'}; export again")
    for name in sorted(expected):
        if name not in found:
            raise PatinaError(f"{path}: layer {name} is missing; export again")
        problem = _problem(found[name], live.get(known[name]), alpha, dtype)
        if problem:
            raise PatinaError(f"{path}: {name}.{problem}; export again")


def _problem(layer: Parts, live: Parts | None, alpha: float, dtype: torch.dtype) -> str | None:
    """What is wrong with a layer, its tensor's name first; None when it is right."""
    for name, tensor in layer.items():
        if tensor.dtype != dtype:
            return f"{name} is {tensor.dtype}, not {dtype}"
        if not tensor.isfinite().all():
            return f"{name} holds NaN or infinity"
    stored = layer[ALPHA].item() if ALPHA in layer else math.nan
    if stored != torch.tensor(alpha, dtype=dtype).item():
        return f"{ALPHA} is {stored}, not {alpha}"
    if live is None:
        zero = [name for name, part in layer.items() if name != ALPHA and not part.any()]
        return None if zero else f"{next(iter(layer))} is not zero in a layer that was not trained"
    names = {ours: IN_FILE[ours] for ours in live}
    if unlike := sorted(layer.keys() ^ {ALPHA, *names.values()}):
        return f"{unlike[0]} is {'not trained' if unlike[0] in layer else 'missing'}"
    for ours, name in names.items():
        if layer[name].shape != live[ours].shape:
            return f"{name} has shape {list(layer[name].shape)}, not {list(live[ours].shape)}"
    return _difference({ours: layer[name] for ours, name in names.items()}, live, stored, alpha, dtype)


def _difference(read: Parts, live: Parts, stored: float, alpha: float, dtype: torch.dtype) -> str | None:
    """What is wrong with a layer's numbers: `read` from the file with its `stored` alpha, `live` with the true one."""
    ratio = scale(read, stored) / scale(live, alpha)
    found, wanted = folded(_exact(read), ratio), _exact(live)
    if form_of(live) is LORA:
        times = scale(live, alpha)
        error, allowed = times * _thin_error(found, wanted), times * _tolerance(wanted, dtype)
        if not error <= allowed:
            return f"{UP}: its delta differs from the live one by {error:.3g}, where rounding explains {allowed:.3g}"
    for name in live.keys() - set(LORA.factors):
        if ((found[name] - wanted[name]).abs() > _rounding(wanted[name], dtype)).any():
            return f"{name}: differs from the live one by more than rounding explains"
    return None


def _thin_error(written: Parts, live: Parts) -> float:
    """Frobenius norm of one LoRA product less another, fp64.

    Neither product is formed (10 million numbers in the largest layers): with U, D the live factors and U', D' the
    file's, U'D' - UD = [U'-U, U] [D'; D'-D], a product of thin matrices, whose norm needs only their Gram matrices.
    """
    left = torch.cat([written["lora_B"] - live["lora_B"], live["lora_B"]], dim=1)
    right = torch.cat([written["lora_A"], written["lora_A"] - live["lora_A"]])
    squared = torch.sum((left.mT @ left) * (right @ right.mT)).item()
    return math.sqrt(max(squared, 0.0))


def _tolerance(live: Parts, dtype: torch.dtype) -> float:
    """The largest ||U'D' - UD|| that storing both factors in `dtype` can cause, from elements to norms by the triangle
    inequality. (Other forms are compared number by number: for them this would allow far too much.)
    """
    norms = [live[name].norm().item() for name in LORA.factors]
    off = [_rounding(live[name], dtype).norm().item() for name in LORA.factors]
    return math.prod(norm + error for norm, error in zip(norms, off, strict=True)) - math.prod(norms)


def _rounding(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """How far each number may be from what was stored of it.

    Rounding moves a number by a relative u at most: 2^-11 in fp16, 2^-8 in bf16, 2^-24 in fp32. Where it underflows
    that is an absolute half of the smallest subnormal (2^-25 in fp16). 2^-22 more covers the fp32 products by which
    scales and an alpha that `dtype` does not hold were folded in.
    """
    info = torch.finfo(dtype)
    return tensor.abs() * (info.eps / 2 + 2.0**-22) + info.smallest_normal * info.eps / 2


def _exact(parts: Parts) -> dict[str, Tensor]:
    """fp64 on the CPU; a LoRA's factors as matrices: [r,in,k,k] -> [r,in*k*k]."""
    exact = {name: part.detach().to("cpu", torch.float64) for name, part in parts.items()}
    return {name: part.flatten(1) if name in LORA.factors else part for name, part in exact.items()}
