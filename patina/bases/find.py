"""What `base_model` stands for, found out from headers and small configs before any weights are loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from patina.bases import signs
from patina.errors import PatinaError
from patina.families import FAMILIES
from patina.family import Family
from patina.objective import EPSILON, VELOCITY
from patina.safeheader import Header, read_header

INDEX = "model_index.json"
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
"""`owner/name`, as the hub writes it."""
UNET_CONFIG, SCHEDULER_CONFIG = "unet/config.json", "scheduler/scheduler_config.json"
ASKED = "as noise.prediction asks"
WHERE = {"folder": "a diffusers folder", "hub": "from the hub"}
CHANNELS = {9: "an inpainting model", 8: "a model that edits pictures by instruction"}
OTHER_CHANNELS = "a model of another kind"
WORDS = {EPSILON: "the noise (epsilon)", VELOCITY: "the velocity (v_prediction)"}
Prediction = Literal["auto", "epsilon", "v_prediction"]


@dataclass(frozen=True)
class Base:
    """A base model that can be trained; nothing of it is loaded."""

    place: str
    """A folder in diffusers layout, a single file, or a name on the hub."""
    kind: Literal["folder", "file", "hub"]
    family: Family
    scheduler: Mapping[str, Any]
    """Entries of the scheduler's config that are others than the folder or the family's layout has."""
    complete: bool
    """Whether it brings its own autoencoder."""
    says: str
    """One line on what was found."""


def find_base(base_model: str, family: str = "auto", prediction: Prediction = "auto") -> Base:
    """Look at a base model without loading it.

    `family` other than `auto` insists on it; `prediction` other than `auto` wins over what the base says. Raises
    PatinaError, saying what was found, for whatever cannot be trained.
    """
    path = Path(base_model)
    if path.suffix.lower() in PICKLES and not path.is_dir():
        raise PatinaError(
            f"base_model: {path} is a pickle, which may run programs when it is opened; convert it once and give the "
            f"new file: python tools/lora.py convert-base {path} {path.with_suffix('.safetensors')}"
        )
    if path.is_dir():
        base = _folder(path, prediction)
    elif path.is_file():
        base = _file(path, prediction)
    elif HUB_ID.fullmatch(base_model) and path.suffix != ".safetensors":
        base = _hub(base_model, prediction)
    else:
        raise PatinaError(
            f"base_model: {path}: there is no such file or folder; check the path, which is relative to where the "
            "command is started, or write a name on the hub (owner/name)"
        )
    if family not in ("auto", base.family.name):
        raise PatinaError(f"family: {family}, but {base.says}; write family: {base.family.name}, or auto")
    return base


def _file(path: Path, prediction: Prediction) -> Base:
    header = read_header(path)
    names = {name: entry.shape for name, entry in header.tensors.items()}
    if what := signs.refusal(names):
        raise PatinaError(f"base_model: {path} is {what}")
    family, complete = FAMILIES[signs.family_of(names)], signs.has_autoencoder(names)
    scheduler, why = _file_scheduler(header, family, prediction)
    says = f"{path} is {family.name}, one file {'with' if complete else 'without'} a VAE, {why}"
    return Base(str(path), "file", family, scheduler, complete, says)


def _file_scheduler(header: Header, family: Family, prediction: Prediction) -> tuple[dict[str, Any], str]:
    """Changes to the config of the layout's scheduler, and words for them."""
    usual = next(iter(family.predicts))
    chosen, why = (
        (prediction, ASKED) if prediction != "auto" else signs.spoken_prediction(header) or (usual, "as usual")
    )
    if why == "as usual" and len(family.predicts) > 1:
        other = next(kind for kind in family.predicts if kind != usual)
        why = f"which its header cannot tell and is assumed; if it is wrong, write noise.prediction: {other}"
    scheduler: dict[str, Any] = {"prediction_type": chosen}
    text = f"predicts {WORDS[chosen]}, {why}"
    if signs.ZERO_SNR in header.tensors:
        # Lin et al., arXiv:2305.08891: drawing must then start at the very last timestep
        scheduler |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        text += "; its last timestep is pure noise (zero terminal SNR)"
    return scheduler, text


def folder_family(path: Path) -> str:
    """The family of a folder in diffusers layout, by its configs. Raises PatinaError where it is none that is known."""
    read = {name: _json(path / name) for name in (INDEX, UNET_CONFIG)}
    return _diffusers_family(str(path), read[INDEX].get("_class_name"), read[UNET_CONFIG]).name


def _folder(path: Path, prediction: Prediction) -> Base:
    if not (path / INDEX).is_file():
        raise PatinaError(f"base_model: {path} holds no {INDEX}; give a folder in diffusers layout, or a single file")
    read = {name: _json(path / name) for name in (INDEX, UNET_CONFIG, SCHEDULER_CONFIG)}
    return _diffusers(str(path), "folder", read, prediction)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PatinaError(f"base_model: {path} is missing; give a whole diffusers folder") from error
    except (ValueError, RecursionError) as error:
        raise PatinaError(f"base_model: {path} is no JSON object ({error}); download the model again") from error
    if not isinstance(found, dict):
        raise PatinaError(f"base_model: {path} is no JSON object; download the model again")
    return found


def _hub(name: str, prediction: Prediction) -> Base:
    """Only the configs are fetched, or found among what was fetched before."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        read = {file: _json(Path(hf_hub_download(name, file))) for file in (INDEX, UNET_CONFIG, SCHEDULER_CONFIG)}
    except LocalEntryNotFoundError as error:
        raise PatinaError(
            f"base_model: there is no path {name} here, and the hub cannot be reached to look for such a model; "
            "check the path, or give a single file or a folder, which need no network"
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        raise PatinaError(
            f"base_model: there is no path {name} here, and the hub has no diffusers model of that name that can be "
            f"read ({_short(error)}); check it"
        ) from error
    return _diffusers(name, "hub", read, prediction)


def _diffusers(
    place: str, kind: Literal["folder", "hub"], read: Mapping[str, dict[str, Any]], prediction: Prediction
) -> Base:
    """What the three configs say: the pipeline's, the UNet's and the scheduler's."""
    index, unet, scheduler = (read[name] for name in (INDEX, UNET_CONFIG, SCHEDULER_CONFIG))
    channels = unet.get("in_channels", 4)
    if channels != 4:
        raise PatinaError(
            f"base_model: {place} is {CHANNELS.get(channels, OTHER_CHANNELS)}: its UNet takes {channels} channels, "
            "not 4; give the model that it was made from"
        )
    family = _diffusers_family(place, index.get("_class_name"), unet)
    found = scheduler.get("prediction_type", EPSILON)
    asked = prediction not in ("auto", found)
    changed = {"prediction_type": prediction} if asked else {}
    words = WORDS.get(prediction if asked else found, found)
    says = f"{place} is {family.name}, {WHERE[kind]}, predicts {words}, {ASKED if asked else 'as its scheduler says'}"
    return Base(place, kind, family, changed, True, says)


def _diffusers_family(place: str, pipeline: object, unet: Mapping[str, Any]) -> Family:
    for family in FAMILIES.values():
        told = all((unet.get(key) or False) == value for key, value in family.told_by.items())
        if family.pipeline == pipeline and told:
            return family
    known = ", ".join(dict.fromkeys(family.pipeline for family in FAMILIES.values()))
    raise PatinaError(f"base_model: {place} is a {pipeline} of a kind that cannot be trained here; known are {known}")


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
