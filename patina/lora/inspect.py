"""What a LoRA file holds, as lines for a terminal: algorithm, layers, trigger, strength by block, metadata."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from patina.errors import printable
from patina.lora import delta
from patina.lora.blocks import sdxl_ldm
from patina.lora.check import notes
from patina.lora.delta import Change
from patina.lora.foreign import AnyLora
from patina.lora.names import Place
from patina.lora.spelling import families

BAR = 40
"""Characters of the longest bar."""
TEXT = 100
"""Characters of a metadata entry that are shown."""
LAYERS = 4
"""Text-encoder layers that one bar stands for."""


def describe(path: Path, lora: AnyLora) -> list[str]:
    """Lines without control characters, whatever the file's texts hold."""
    lines = [*_facts(path, lora), "", "strength by block (Frobenius norm of the change at weight 1)", *_bars(lora)]
    if lora.metadata:
        lines += ["", "metadata"]
        lines += [f"  {key} = {_cut(text)}" for key, text in sorted(lora.metadata.items())]
    lines += ["", *notes(lora)] if notes(lora) else []
    return [printable(line.replace("\n", "\\n")) for line in lines]


def trigger(path: Path, metadata: Mapping[str, str]) -> str:
    """The word that calls the style: the header's, or the one in the JSON beside the file; empty where neither says."""
    told = metadata.get("modelspec.trigger_phrase", "")
    beside = path.with_suffix(".json")
    if told or not beside.is_file():
        return told
    try:
        entries = json.loads(beside.read_text(encoding="utf-8"))
    except ValueError:  # some other program's, and only shown
        return ""
    return str(entries.get("activation text", "")) if isinstance(entries, dict) else ""


def norms(lora: AnyLora) -> dict[str, float]:
    """block -> Frobenius norm of all its layers' deltas at weight 1, dora_scale left aside; in the model's order."""
    squares: dict[str, float] = {}
    for place, change in lora.changes.items():
        squares[block(place)] = squares.get(block(place), 0.0) + _square(change)
    return {name: math.sqrt(squares[name]) for name in sorted(squares, key=_order)}


def block(place: Place) -> str:
    """The block that a layer is in, as WebUI users call it: IN04, MID, OUT11, TE1 00-03."""
    if place.component != "unet":
        number = int(place.path.split(".")[2]) // LAYERS * LAYERS
        return f"{'TE2' if place.component.endswith('2') else 'TE1'} {number:02d}-{number + LAYERS - 1:02d}"
    found = re.match(r"(input|middle|output)_blocks?\.(\d+)", sdxl_ldm(place.path))
    if not found:
        return "other"
    return "MID" if found[1] == "middle" else f"{'IN' if found[1] == 'input' else 'OUT'}{int(found[2]):02d}"


def _facts(path: Path, lora: AnyLora) -> Iterator[str]:
    kinds = Counter(_kind(change) for change in lora.changes.values())
    dtypes = sorted({str(part.dtype)[6:] for change in lora.changes.values() for part in change.parts.values()})
    layers = Counter(place.component for place in lora.changes)
    family = " or ".join(families(lora)) or "no one family"
    yield f"{path.name}: a LoRA for {family}, {path.stat().st_size / 1e6:.1f} MB"
    for kind, count in kinds.most_common():
        yield f"  algorithm  {kind}" + (f" in {count} layers" if len(kinds) > 1 else "")
    yield f"  layers     {', '.join(f'{component} {count}' for component, count in sorted(layers.items()))}"
    yield f"  numbers    {', '.join(dtypes)}"
    yield f"  trigger    {trigger(path, lora.metadata) or 'none given'}"
    if lora.unknown:
        yield f"  unknown    {len(lora.unknown)} tensors, first {lora.unknown[0]}"


def _kind(change: Change) -> str:
    rank = delta.rank(change)
    if rank is None:
        return delta.algorithm(change)
    alpha = "no alpha" if change.alpha is None else f"alpha {change.alpha:g}"
    return f"{delta.algorithm(change)}, rank {rank}, {alpha}"


def _bars(lora: AnyLora) -> Iterator[str]:
    found = norms(lora)
    longest = max((norm for norm in found.values() if math.isfinite(norm)), default=0.0)
    width = max(map(len, found))
    for name, norm in found.items():
        filled = round(BAR * norm / longest) if longest and math.isfinite(norm) else 0
        yield f"  {name:<{width}}  {'#' * filled:<{BAR}}  {norm:.3g}"


def _square(change: Change) -> float:
    """Squared Frobenius norm of a delta; of two thin factors from their Gram matrices, without the product."""
    found = delta.thin(change._replace(parts={name: part for name, part in change.parts.items() if name != delta.DORA}))
    if found is None:
        return delta.delta(change).square().sum().item()
    return max(((found.up.mT @ found.up) * (found.down @ found.down.mT)).sum().item(), 0.0)


def _order(name: str) -> tuple[int, str]:
    return ("IN", "MI", "OU", "ot", "TE").index(name[:2]), name


def _cut(text: str) -> str:
    return text if len(text) <= TEXT else f"{text[:TEXT]}... ({len(text)} characters)"
