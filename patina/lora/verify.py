"""Read an exported LoRA back and compare it with the live one, so that a bad file is found at the export."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from patina.errors import PatinaError
from patina.family import Family
from patina.lora.file import Layer, read
from patina.lora.inject import Adapter, adapters
from patina.lora.names import DOWN, UP, Place, file_key, module_names, siblings


def verify(path: Path, modules: Mapping[str, nn.Module], family: Family, alpha: float, dtype: torch.dtype) -> None:
    """Check that a file holds the LoRA of `modules` (component -> adapted module), written with `alpha` in `dtype`.

    Names: all known to the family, none missing. Tensors: of the dtype and the live shapes, finite. Each layer's
    delta, alpha / rank * up @ down, is the live adapter's within what rounding to `dtype` explains (`_tolerance`);
    a layer written only for a trained sibling's sake adds nothing. Raises PatinaError naming the first bad tensor.
    """
    found = read(path).layers
    live = _live(modules)
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


def _live(modules: Mapping[str, nn.Module]) -> dict[Place, Adapter]:
    return {
        Place(component, path): adapter
        for component, module in modules.items()
        for path, adapter in adapters(module).items()
    }


def _problem(layer: Layer, adapter: Adapter | None, alpha: float, dtype: torch.dtype) -> str | None:
    """What is wrong with a layer, its tensor's name first; None when it is right."""
    for name, tensor in ((DOWN, layer.down), (UP, layer.up)):
        if tensor.dtype != dtype:
            return f"{name} is {tensor.dtype}, not {dtype}"
        if not tensor.isfinite().all():
            return f"{name} holds NaN or infinity"
    if layer.alpha != torch.tensor(alpha, dtype=dtype).item():
        return f"alpha is {layer.alpha}, not {alpha}"
    if adapter is None:
        return f"{UP} is not zero in a layer that was not trained" if layer.up.any() else None
    for name, tensor, weight in ((DOWN, layer.down, adapter.A), (UP, layer.up, adapter.B)):
        if tensor.shape != weight.shape:
            return f"{name} has shape {list(tensor.shape)}, not {list(weight.shape)}"
    error, allowed = _delta_error(layer, adapter, dtype)
    if not error <= allowed:
        return f"{UP}: its delta differs from the live one by {error:.3g}, where rounding explains {allowed:.3g}"
    return None


def _delta_error(layer: Layer, adapter: Adapter, dtype: torch.dtype) -> tuple[float, float]:
    """Frobenius norms, in fp64: of the file's delta minus the live one, and of what rounding may make of it.

    Neither delta is formed (10 million numbers in the largest layers): with U, D the live factors and U', D' the
    file's, U'D' - UD = [U'-U, U] [D'; D'-D], a product of thin matrices, whose norm needs only their Gram matrices.
    """
    down, up = _matrix(adapter.A), _matrix(adapter.B) * adapter.scale
    down_off = _matrix(layer.down) - down
    up_off = _matrix(layer.up) * (layer.alpha / layer.down.shape[0]) - up
    left = torch.cat([up_off, up], dim=1)
    right = torch.cat([down + down_off, down_off])
    squared = torch.sum((left.mT @ left) * (right @ right.mT)).item()
    return math.sqrt(max(squared, 0.0)), _tolerance(up, down, adapter.scale, dtype)


def _tolerance(up: Tensor, down: Tensor, scale: float, dtype: torch.dtype) -> float:
    """The largest ||U'D' - UD|| that storing both factors in `dtype` can cause.

    Rounding moves a number by a relative u at most: 2^-11 in fp16, 2^-8 in bf16, 2^-24 in fp32. Where it underflows
    that is an absolute half of the smallest subnormal (2^-25 in fp16). 2^-22 more covers the fp32 product by which an
    alpha that `dtype` does not hold was folded in. From elements to norms by the triangle inequality.
    """
    info = torch.finfo(dtype)
    u, underflow = info.eps / 2 + 2.0**-22, info.smallest_normal * info.eps / 2
    up_norm, down_norm = up.norm().item(), down.norm().item()
    up_off = u * up_norm + scale * underflow * math.sqrt(up.numel())
    down_off = u * down_norm + underflow * math.sqrt(down.numel())
    return up_off * down_norm + up_norm * down_off + up_off * down_off


def _matrix(weight: Tensor) -> Tensor:
    """[r,in] or [r,in,k,k] -> fp64 [r,in*k*k] on the CPU; the other factor alike."""
    return weight.detach().to("cpu", torch.float64).flatten(1)
