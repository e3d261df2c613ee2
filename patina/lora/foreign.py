"""Read any program's LoRA file for Stable Diffusion 1.x, 2.x or XL: sd-scripts, diffusers, peft, LyCORIS."""

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from patina.errors import PatinaError
from patina.lora import delta
from patina.lora.blocks import LAYOUTS, layers, sd_ldm, sdxl_ldm
from patina.lora.delta import BIAS, DIFF, DORA, LOHA, LOHA_CORES, LOKR, MID, Change
from patina.lora.names import ALPHA, DOWN, UP, Place, underscored
from patina.lora.unread import said, unread
from patina.safeheader import read_header

TEXT = "text_model."
PREFIXES = {
    "unet": ("lora_unet_",),
    "text_encoder": ("lora_te_text_model_", "lora_te1_text_model_", "lora_te_", "lora_te1_"),
    "text_encoder_2": ("lora_te2_text_model_", "lora_te2_"),
}
"""component -> what its layers' names begin with, whoever wrote them; the dotted path follows with underscores."""
DOTTED = {"unet.": "lora_unet_", "text_encoder.": "lora_te1_", "text_encoder_2.": "lora_te2_"}
MAGNITUDE = "magnitude"
"""What DORA is in peft's spelling, before its shape is made LyCORIS's."""
PEFT = "base_model.model."
"""What peft itself puts before the paths of the one model it saves."""
WAYS = {"down": DOWN, "up": UP, "A": DOWN, "B": UP}
ENDINGS: Mapping[str, str] = {
    **{f".{name}": name for name in (DOWN, UP, MID, ALPHA, DORA, DIFF, BIAS, *LOHA, *LOHA_CORES, *LOKR)},
    **{f".lora_{way}{adapter}.weight": WAYS[way] for way in "AB" for adapter in ("", ".default")},
    **{
        f"{stem}.{way}.weight": WAYS[way] for way in ("down", "up") for stem in (".lora", ".lora_linear_layer", "_lora")
    },
    **{f".lora_magnitude_vector{end}": MAGNITUDE for end in ("", ".weight", ".default.weight")},
}
"""How a key ends -> which tensor of its module it is; what stands before the ending is the module's name."""
OLD = {"to_out": "to_out.0"}
OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
"""Layers in diffusers' oldest spelling (`attn1.processor.to_q_lora.up.weight`), where they were called otherwise."""
SETTINGS = "lora_adapter_metadata"
"""The entry of a header in which diffusers keeps peft's settings, alpha among them."""


class AnyLora(NamedTuple):
    """A file of any spelling, read."""

    changes: dict[Place, Change]
    """By layer: the pipeline's component and diffusers' dotted path in it, a text encoder's without `text_model.`."""
    names: dict[Place, str]
    """What the file itself calls each layer."""
    unknown: tuple[str, ...]
    """Keys that fit no layer of these families, or no algorithm that is read here."""
    metadata: dict[str, str]
    unread: dict[str, list[str]]
    """Those of the unknown keys that are a known algorithm's, by its name."""


def read_any(path: Path) -> AnyLora:
    """Read a LoRA file; tensors on the CPU in the file's dtype.

    Raises PatinaError for a file that is missing, damaged or no safetensors, for one of which nothing is a known layer
    of these families, and for a layer whose tensors do not fit each other.
    """
    metadata = read_header(path).metadata
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise PatinaError(f"{path}: not a sound safetensors file ({error}); write or download it again") from error
    parts, names, unknown = _sorted(tensors)
    settings = _settings(path, metadata)
    changes = {}
    for place, found in parts.items():
        change = _change(path, names[place], found, settings.get(place.component), place.path)
        if change is None:
            unknown += [key for key in tensors if key.startswith(f"{names[place]}.")]
        else:
            changes[place] = change
    left = tuple(dict.fromkeys(unknown))
    others = unread({key: tensors[key].ndim for key in left})
    if not changes and others:
        raise PatinaError(
            f"{path}: holds {said(others)}, which Patina does not read; it reads LoRA, LoHa, LoKr, DoRA and whole "
            "differences. A WebUI that knows the algorithm can use the file as it is"
        )
    if not changes:
        raise PatinaError(
            f"{path}: none of its {len(tensors)} tensors is a LoRA's for Stable Diffusion 1.x, 2.x or XL "
            f"(the first is {next(iter(tensors), 'missing')!r}); give a LoRA file for one of these"
        )
    return AnyLora(changes, {place: names[place] for place in changes}, left, metadata, others)


@cache
def known_names() -> Mapping[str, Place]:
    """Every name that a layer of a known family can have in a file, prefix first -> the layer.

    The paths' dots are underscores in names, and underscores occur in paths too: the way back is this table. A UNet's
    layer is called by diffusers' blocks (as sd-scripts does for SD1.x) or by LDM's (as it does for SDXL).
    """
    table: dict[str, Place] = {}
    for layout in LAYOUTS.values():
        for component, found in layers(layout).items():
            for path in found:
                for name in {path} if component != "unet" else {path, sdxl_ldm(path), sd_ldm(path)}:
                    for prefix in PREFIXES[component]:
                        key, place = underscored(prefix, name), Place(component, path)
                        assert table.setdefault(key, place) == place, f"two layers are called {key}"
    return table


def _sorted(tensors: Mapping[str, Tensor]) -> tuple[dict[Place, dict[str, Tensor]], dict[Place, str], list[str]]:
    """Keys -> tensors by layer and part, the layers' names in the file, and what belongs to no known layer."""
    parts: dict[Place, dict[str, Tensor]] = {}
    names: dict[Place, str] = {}
    unknown = []
    for key, tensor in tensors.items():
        stem, part = _split(key)
        place = _place(stem) if part else None
        if place is None or part in parts.get(place, {}):
            unknown.append(key)
            continue
        parts.setdefault(place, {})[part] = tensor
        names[place] = stem
    return parts, names, unknown


def _split(key: str) -> tuple[str, str]:
    """A key's layer and part; the part is empty where it is none of a LoRA's."""
    for ending, part in ENDINGS.items():
        if key.endswith(ending):
            return key.removesuffix(ending), part
    return key, ""


def _place(stem: str) -> Place | None:
    return next((place for name in _spelt(stem) if (place := known_names().get(name))), None)


def _spelt(stem: str) -> Iterator[str]:
    """What sd-scripts would call a layer: one name, or several to try where the file does not say the component."""
    if "." not in stem:
        yield stem
        return
    stem = _modern(stem.removeprefix(PEFT))
    for dotted, prefix in DOTTED.items():
        if stem.startswith(dotted):
            yield underscored(prefix, stem.removeprefix(dotted))
    yield underscored("lora_unet_", stem)
    yield underscored("lora_te1_", stem)


def _modern(stem: str) -> str:
    """diffusers' oldest spelling -> today's path."""
    parent, _, last = stem.rpartition(".")
    if parent.endswith(".processor"):
        return f"{parent.removesuffix('.processor')}.{OLD.get(last, last)}"
    return f"{parent}.{OLD_TEXT.get(last, last)}" if parent.endswith(".self_attn") else stem


def _change(
    path: Path, name: str, found: Mapping[str, Tensor], settings: Mapping[str, Any] | None, layer: str
) -> Change | None:
    """One layer's tensors, checked; None where they are none of the known algorithms'."""
    parts = {part: tensor for part, tensor in found.items() if part not in (ALPHA, MAGNITUDE)}
    if MAGNITUDE in found and UP in parts:  # peft's, along the outputs
        parts[DORA] = found[MAGNITUDE].reshape(-1, *[1] * (parts[UP].ndim - 1))
    if DORA in parts and parts[DORA].ndim == 1:
        parts[DORA] = parts[DORA][:, None]
    alpha = found.get(ALPHA)
    if alpha is not None and alpha.numel() != 1:
        raise PatinaError(f"{path}: {name}.alpha has shape {list(alpha.shape)}, not one number; export the file again")
    if not any(formula.fits(parts) for formula in delta.FORMULAS.values()):
        return None
    change = Change(parts, None if alpha is None else alpha.item())
    if change.alpha is None and settings:
        change = change._replace(alpha=_peft_alpha(settings, layer, delta.rank(change)))
    if not _fits(change):
        shapes = ", ".join(f"{part} {list(tensor.shape)}" for part, tensor in parts.items())
        raise PatinaError(f"{path}: {name} has tensors that do not fit each other ({shapes}); export the file again")
    return change


def _fits(change: Change) -> bool:
    try:
        delta.shape(change)
    except (RuntimeError, IndexError):
        return False
    magnitude = change.parts.get(DORA)
    return magnitude is None or max(magnitude.shape) == magnitude.numel()


def _settings(path: Path, metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """component -> peft's settings, from the header or, as peft itself keeps them, from adapter_config.json beside."""
    beside = path.with_name("adapter_config.json")
    text = metadata.get(SETTINGS)
    try:
        if text is None and beside.is_file():
            return dict.fromkeys(PREFIXES, json.loads(beside.read_text(encoding="utf-8")))
        entries = json.loads(text or "{}")
    except ValueError as error:
        where = SETTINGS if text else beside
        raise PatinaError(
            f"{path}: peft's settings in {where} are not JSON ({error}); export the file again"
        ) from error
    found: dict[str, dict[str, Any]] = {}
    for key, value in entries.items():
        component, _, name = key.partition(".")
        found.setdefault(component, {})[name] = value
    return found


def _peft_alpha(settings: Mapping[str, Any], layer: str, rank: int | None) -> float | None:
    """The alpha that peft would use for a layer, with rsLoRA's square root worked in; None where it says nothing."""
    patterns = settings.get("alpha_pattern") or {}
    fitting = [alpha for pattern, alpha in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", layer)]
    alpha = next(iter(fitting), settings.get("lora_alpha"))
    if alpha is None or rank is None:
        return None
    return alpha * rank**0.5 if settings.get("use_rslora") else float(alpha)
