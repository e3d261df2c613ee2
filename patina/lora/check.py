"""What is wrong with a LoRA file of any origin, and what some programs will not make of it."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from patina.errors import PatinaError
from patina.lora import delta
from patina.lora.basefile import Base
from patina.lora.blocks import TEXT_ATTENTION
from patina.lora.delta import DORA
from patina.lora.file import payload_sha256
from patina.lora.foreign import AnyLora, read_any
from patina.lora.names import Place
from patina.lora.spelling import families
from patina.lora.unread import said

SHOWN = 3
"""Names that a sentence lists at most."""


def problems(path: Path, family: str | None = None, base: Base | None = None) -> list[str]:
    """Sentences about what is wrong with a file; none when it is sound and fits the family or base that it is for."""
    try:
        lora = read_any(path)
    except PatinaError as error:
        return [str(error)]
    wanted = family or (base.family if base else None)
    return [f"{path}: {told}" for told in chain(_own(path, lora), _fitting(lora, wanted), _in_base(lora, base))]


def notes(lora: AnyLora) -> list[str]:
    """Sentences about which programs read a sound file only in part, or not at all."""
    return list(_notes(lora))


def _own(path: Path, lora: AnyLora) -> Iterator[str]:
    if lora.unread:
        others = said(lora.unread)
        yield f"layers: {len(lora.changes)} sound, and {others}, which Patina does not read; WebUIs that know it do"
    known = {key for keys in lora.unread.values() for key in keys}
    if unknown := [key for key in lora.unknown if key not in known]:
        yield f"{len(unknown)} tensors belong to no known layer or algorithm: {_some(unknown)}"
    broken = [
        f"{lora.names[place]}.{part}"
        for place, change in lora.changes.items()
        for part, tensor in change.parts.items()
        if not tensor.isfinite().all()
    ]
    if broken:
        yield f"{len(broken)} tensors hold NaN or infinity: {_some(broken)}"
    told = lora.metadata.get("sshs_model_hash")
    if told and told.removeprefix("0x") != payload_sha256(path):
        yield "its tensors are not those that its header's sshs_model_hash was made of"


def _fitting(lora: AnyLora, family: str | None) -> Iterator[str]:
    found = families(lora)
    if not found:
        yield "its layers are of no one family"
    elif family and family not in found:
        yield f"it is for {' or '.join(found)}, not for {family}"


def _in_base(lora: AnyLora, base: Base | None) -> Iterator[str]:
    if base is None:
        return
    missing = [lora.names[place] for place in lora.changes if place not in base.slots]
    if missing:
        yield f"{len(missing)} layers are not in {base.path}: {_some(missing)}"
    unlike = [
        f"{lora.names[place]} {list(delta.shape(change))} for {list(base.slots[place].shape())}"
        for place, change in lora.changes.items()
        if place in base.slots and not fits(change, base.slots[place].shape())
    ]
    if unlike:
        yield f"{len(unlike)} layers have other sizes than in {base.path}: {_some(unlike)}"


def fits(change: delta.Change, weight: tuple[int, ...]) -> bool:
    """Whether a change can be added to a weight of this shape."""
    rows, *rest = weight
    columns = 1
    for size in rest:
        columns *= size
    return delta.shape(change) == (rows, columns)


def _notes(lora: AnyLora) -> Iterator[str]:
    kinds = {delta.algorithm(change) for change in lora.changes.values()}
    if kinds - {"lora"}:
        yield f"{', '.join(sorted(kinds - {'lora'}))}: diffusers reads plain LoRA alone; the WebUIs read this"
    if any(DORA in change.parts for change in lora.changes.values()):
        yield "DoRA: WebUIs differ in what they make of it; resize --base makes it a plain LoRA"
    if any("." in name for name in lora.names.values()):
        yield "dotted names: A1111, Forge and InvokeAI read nothing of it; convert --to kohya"
    unet = [name for name in lora.names.values() if name.startswith("lora_unet_")]
    ldm = [name for name in unet if name.startswith(("lora_unet_input_", "lora_unet_middle_", "lora_unet_output_"))]
    if ldm and len(ldm) < len(unet):
        yield "two spellings of block names in one file: diffusers drops one of them; convert --to kohya"
    for component in sorted({place.component for place in lora.changes}):
        alphas = {change.alpha for place, change in lora.changes.items() if place.component == component}
        if len(alphas - {None}) > 1:
            yield f"{component}: layers differ in alpha, which diffusers overlooks; resize makes them equal"
    if _torn(lora):
        yield "text encoder layers with some of q, k, v and out alone: A1111 and diffusers may skip them"


def _torn(lora: AnyLora) -> bool:
    layers = {
        Place(component, path.split(".self_attn.")[0])
        for component, path in lora.changes
        if component != "unet" and ".self_attn." in path
    }
    return any(Place(part, f"{path}.{name}") not in lora.changes for part, path in layers for name in TEXT_ATTENTION)


def _some(names) -> str:
    listed = list(names)
    return ", ".join(listed[:SHOWN]) + (", ..." if len(listed) > SHOWN else "")
