"""Algorithms that LoRA files may hold and that are not read here: told by name, so that no such file seems damaged."""

import re
from collections.abc import Iterable, Mapping

MARKS: Mapping[str, str] = {
    "w_norm": "norm",
    "b_norm": "norm",
    "oft_blocks": "OFT",
    "oft_diag": "OFT",
    "a1.weight": "GLoRA",
    "on_input": "IA3",
}
"""What a layer of an algorithm has after the first dot, and nothing else has (LyCORIS' names)."""
NORM_LAYER = re.compile(r"norm\d*$")
"""How the names of norm layers end; they have no matrix, and other programs' whole differences may be of them."""


def unread(tensors: Mapping[str, int]) -> dict[str, list[str]]:
    """Algorithm -> keys, of those keys (key -> its tensor's axes) that an algorithm claims which is not read here.

    All tensors of a layer are its algorithm's. BOFT (Liu et al. 2023, arXiv:2311.06243) has an axis more than OFT.
    """
    layers: dict[str, list[str]] = {}
    for key in tensors:
        layers.setdefault(key.partition(".")[0], []).append(key)
    found: dict[str, list[str]] = {}
    for name, keys in layers.items():
        if algorithm := _algorithm(name, {key.partition(".")[2]: tensors[key] for key in keys}):
            found.setdefault(algorithm, []).extend(keys)
    return found


def said(found: Mapping[str, Iterable[str]]) -> str:
    """`OFT in 3 layers, norm in 1 layer`: what `unread` found, as a part of a sentence."""
    counts = {algorithm: len({key.partition(".")[0] for key in keys}) for algorithm, keys in found.items()}
    return ", ".join(f"{algorithm} in {count} layer{'s' * (count > 1)}" for algorithm, count in counts.items())


def _algorithm(layer: str, parts: Mapping[str, int]) -> str | None:
    if NORM_LAYER.search(layer) and parts.keys() & {"diff", "diff_b"}:
        return "norm"
    found = next((MARKS[part] for part in parts if part in MARKS), None)
    return "BOFT" if found == "OFT" and parts.get("oft_blocks") == 4 else found
