"""Which family a LoRA is for, and its layers in the spelling that a program wants."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from patina.errors import PatinaError
from patina.families import FAMILIES
from patina.lora import delta
from patina.lora.basefile import Base
from patina.lora.blocks import LAYOUTS, PROJECTIONS, Layout, layers
from patina.lora.delta import DORA, MID, Change
from patina.lora.file import write_tensors
from patina.lora.foreign import SETTINGS, TEXT, AnyLora
from patina.lora.module import network
from patina.lora.names import ALPHA, DOWN, UP, Place, underscored

Spelling = Literal["kohya", "diffusers", "peft"]
"""`kohya`: sd-scripts', which every program reads. `diffusers`: the same with diffusers' block names for SDXL, too.
`peft`: dotted paths, which diffusers alone reads whole."""
VERSIONS = {"sdxl_": "sdxl", "sd_v2": "sd2", "sd_v1": "sd15"}
"""Beginnings of `ss_base_model_version` -> family."""
ONE_ENCODER = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}
TWO_ENCODERS = {
    "unet": "lora_unet_",
    "text_encoder": "lora_te1_text_model_",
    "text_encoder_2": "lora_te2_text_model_",
}
STALE = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", SETTINGS)
"""Entries that are of the file as it was."""


def families(lora: AnyLora) -> list[str]:
    """The families that a file can be for, by its layers' names and widths; of several, the one it names itself.

    Widths decide only where they are a family's: toy models have none of them.
    """
    fitting = [name for name, layout in LAYOUTS.items() if _holds(layout, lora.changes)]
    widths = {delta.shape(change)[1] for place, change in lora.changes.items() if place.path.endswith("attn2.to_k")}
    told = [name for name in fitting if LAYOUTS[name].context in widths]
    if widths & {layout.context for layout in LAYOUTS.values()}:
        fitting = told
    version = lora.metadata.get("ss_base_model_version", "")
    named = [name for start, name in VERSIONS.items() if version.startswith(start) and name in fitting]
    return named or fitting


def family_of(paths: Sequence[Path], loras: Sequence[AnyLora], base: Base | None = None) -> str:
    """The family that all these files are for: the base's where one is given, else the first of those they can be for.

    Raises PatinaError where a file's layers fit no family, and where the files, or they and the base, are of several.
    """
    found = [families(lora) for lora in loras]
    for path, names in zip(paths, found, strict=True):
        if not names:
            raise PatinaError(
                f"{path}: its layers are of no one family; is it joined from two? Give a LoRA for one family"
            )
    shared = [name for name in LAYOUTS if all(name in names for names in found)]
    if not shared:
        named = ", ".join(names[0] for names in found)
        raise PatinaError(f"these LoRAs are for different families ({named}); give files for one")
    if base is None:
        return shared[0]
    if base.family not in shared:
        raise PatinaError(f"{base.path} is {base.family}, but {paths[0]} is for {' or '.join(shared)}; give its base")
    return base.family


def save(
    path: Path,
    changes: Mapping[Place, Change],
    family: str,
    metadata: Mapping[str, str],
    spelling: Spelling = "kohya",
    dtype: torch.dtype | None = None,
) -> None:
    """Write layers in a spelling, as `dtype` or in their own; the header keeps `metadata`, its hashes made anew.

    What a web UI needs to know the family by is added where it is missing. Raises PatinaError for layers that the
    spelling cannot hold, and for numbers that `dtype` cannot.
    """
    spelt = {key: _cast(key, tensor, dtype) for key, tensor in SPELLINGS[spelling](changes, family).items()}
    ranks = [rank for change in changes.values() if (rank := delta.rank(change))]
    alphas = [change.alpha for change in changes.values() if change.alpha is not None]
    found = FAMILIES.get(family)
    known = {
        **(found.metadata if found else {}),
        **network(changes),
        "ss_network_dim": str(max(ranks, default=None)),
        "ss_network_alpha": str(max(alphas, default=max(ranks, default=None))),
        "ss_output_name": path.stem,
    }
    kept = {key: text for key, text in metadata.items() if key not in STALE}
    write_tensors(path, dict(sorted(spelt.items())), known | kept)


def _holds(layout: Layout, changes: Mapping[Place, Change]) -> bool:
    found = {component: set(paths) for component, paths in layers(layout).items()}
    if not all(place.path in found.get(place.component, ()) for place in changes):
        return False
    kinds = {
        change.parts[DOWN].ndim == 2
        for place, change in changes.items()
        if place.path.endswith(PROJECTIONS) and DOWN in change.parts
    }
    return not kinds or kinds == {layout.linear}


def _kohya(changes: Mapping[Place, Change], family: str) -> dict[str, Tensor]:
    """SDXL's UNet in LDM's block names, as sd-scripts writes it."""
    return _underscored(changes, family, LAYOUTS[family].file)


def _diffusers(changes: Mapping[Place, Change], family: str) -> dict[str, Tensor]:
    return _underscored(changes, family, str)


def _underscored(changes: Mapping[Place, Change], family: str, unet: Callable[[str], str]) -> dict[str, Tensor]:
    prefixes = TWO_ENCODERS if "text_encoder_2" in LAYOUTS[family].text else ONE_ENCODER
    tensors = {}
    for place, change in changes.items():
        path = unet(place.path) if place.component == "unet" else place.path
        name = underscored(prefixes[place.component], path)
        tensors |= {f"{name}.{part}": tensor for part, tensor in change.parts.items()}
        alpha = delta.rank(change) if change.alpha is None else change.alpha
        if alpha is not None:
            tensors[f"{name}.{ALPHA}"] = torch.tensor(float(alpha))
    return tensors


def _peft(changes: Mapping[Place, Change], _family: str) -> dict[str, Tensor]:
    """alpha / rank is worked into B: diffusers takes a dotted file without alpha for one of scale 1."""
    tensors = {}
    for place, change in changes.items():
        if DOWN not in change.parts or MID in change.parts:
            raise PatinaError(
                f"peft has no spelling for {delta.algorithm(change)} ({place.component} {place.path}); make it a plain "
                "LoRA first: python tools/lora.py resize"
            )
        text = TEXT if place.component != "unet" else ""
        name = f"{place.component}.{text}{place.path}"
        tensors[f"{name}.lora_A.weight"] = change.parts[DOWN]
        up = change.parts[UP]
        tensors[f"{name}.lora_B.weight"] = (up.double() * delta.scale(change)).to(up.dtype)
        if DORA in change.parts:
            tensors[f"{name}.lora_magnitude_vector"] = _magnitude(change.parts[DORA], place)
    return tensors


def _magnitude(scales: Tensor, place: Place) -> Tensor:
    if scales.shape[0] != scales.numel():
        raise PatinaError(
            f"peft has no DoRA along the inputs ({place.component} {place.path}); make it a plain LoRA first: "
            "python tools/lora.py resize --base"
        )
    return scales.flatten() if scales.ndim == 2 else scales.reshape(1, -1, 1, 1)


def _cast(key: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A copy in `dtype`; an alpha that it does not hold exactly stays fp32, which readers do not mind."""
    cast = tensor if dtype is None else tensor.to(dtype)
    if key.endswith(f".{ALPHA}") and cast.double() != tensor.double():
        cast = tensor
    if not cast.isfinite().all():
        raise PatinaError(f"{key} would not be finite in {cast.dtype}; write --dtype bf16 or fp32")
    return cast.detach().clone().contiguous()


SPELLINGS: Mapping[Spelling, Callable[[Mapping[Place, Change], str], dict[str, Tensor]]] = {
    "kohya": _kohya,
    "diffusers": _diffusers,
    "peft": _peft,
}
