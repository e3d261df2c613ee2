"""Add LoRAs to a checkpoint's own weights, tensor by tensor: no more memory than the largest of them is needed."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from patina.errors import PatinaError
from patina.files import replacing
from patina.lora import delta
from patina.lora.basefile import Base
from patina.lora.check import fits
from patina.lora.delta import BIAS, Change
from patina.lora.foreign import AnyLora
from patina.lora.names import Place
from patina.lora.spelling import STALE
from patina.lora.stream import TensorFile, read, rewrite

Terms = Sequence[tuple[Change, float]]


class Touched(NamedTuple):
    """What becomes of one tensor of the checkpoint: each of its thirds (None: all of it) and what is added there."""

    thirds: list[tuple[int | None, Terms]]
    bias: bool = False


def bake(base: Base, loras: Sequence[tuple[AnyLora, float]], target: Path) -> int:
    """Write `target`, the base with each LoRA added at its weight, and return how many layers changed.

    A file or a folder, as the base is one; complete or not at all. All else is copied byte for byte, and every tensor
    keeps its dtype; sums are made in float64. Weights other than 1 scale a DoRA's growth, as A1111 and ComfyUI do.
    Raises PatinaError, before anything is written, for layers that the base does not have in this size.
    """
    places = dict.fromkeys(place for lora, _ in loras for place in lora.changes)
    terms = {place: [(lora.changes[place], w) for lora, w in loras if place in lora.changes] for place in places}
    touched = _touched(base, terms)
    if not base.path.is_dir():
        with replacing(target) as part:
            _rewrite(base.files[0], part, touched)
        return len(places)
    if target.exists() and not (target / "model_index.json").is_file():
        raise PatinaError(f"{target}: what is there holds no model, so it is not written over; choose another name")
    with _replacing_folder(target) as part:
        rewritten = {file.path for file in base.files}
        shutil.copytree(base.path, part, ignore=lambda at, names: [n for n in names if Path(at, n) in rewritten])
        for file in base.files:
            _rewrite(file, part / file.path.relative_to(base.path), touched)
    return len(places)


def _touched(base: Base, terms: Mapping[Place, Terms]) -> dict[tuple[Path, str], Touched]:
    """(folder, key) -> what is added: the same key in another file there is the same weight in other numbers."""
    found: dict[tuple[Path, str], Touched] = {}
    for place, changes in terms.items():
        slot = base.slots.get(place)
        if slot is None or not all(fits(change, slot.shape()) for change, _ in changes):
            fault = "has no layer" if slot is None else "has another size of"
            raise PatinaError(f"{base.path} {fault} {place.component} {place.path}; is it a base for this LoRA?")
        folder = slot.file.path.parent
        found.setdefault((folder, slot.key), Touched([])).thirds.append((slot.third, changes))
        if any(BIAS in change.parts for change, _ in changes):
            bias = slot.key.removesuffix("weight") + "bias"
            if bias not in slot.file.entries:
                raise PatinaError(f"{base.path} has no bias at {place.component} {place.path}; is it for this LoRA?")
            found.setdefault((folder, bias), Touched([], bias=True)).thirds.append((slot.third, changes))
    return found


def _rewrite(file: TensorFile, target: Path, touched: Mapping[tuple[Path, str], Touched]) -> None:
    def changed(key: str) -> Tensor | None:
        found = touched.get((file.path.parent, key))
        if found is None:
            return None
        tensor = read(file, key)
        if not tensor.isfinite().all():
            raise PatinaError(f"{key} of {file.path} holds NaN or infinity; download the checkpoint again")
        grown = _grown(tensor, found)
        if not grown.isfinite().all():
            raise PatinaError(f"{key} of {file.path} would not be finite in {grown.dtype}; lower the LoRA's weight")
        return grown

    metadata = {key: text for key, text in file.metadata.items() if key not in STALE}
    rewrite(file, target, changed, metadata)


def _grown(tensor: Tensor, touched: Touched) -> Tensor:
    for third, terms in touched.thirds:
        part = tensor if third is None else tensor.chunk(3)[third]
        total = part.double()
        for change, weight in terms:
            if touched.bias and BIAS not in change.parts:
                continue
            growth = change.parts[BIAS].double() if touched.bias else delta.grown(change, part)
            total.add_(growth, alpha=weight)  # in place: a layer in float64 is four times its size in fp16
        part.copy_(total)
    return tensor


@contextmanager
def _replacing_folder(target: Path) -> Iterator[Path]:
    """As `replacing`, for a folder: what was at `target` is gone only once the new one is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield part
        if target.is_dir():
            shutil.rmtree(target)
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
