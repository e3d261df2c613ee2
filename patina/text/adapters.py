"""Reading adapter folders of peft's: what each adds to which layer of a model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from peft import LoraConfig, PeftConfig
from peft.tuners.lora import LoraLayer, LoraModel
from safetensors.torch import load_file
from torch import Tensor

from patina.errors import PatinaError
from patina.text.export import CONFIG, LENGTHS, PREFIX, WEIGHTS

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""peft's `init_lora_weights` that leave the base's weights alone."""
FACTORS = ("lora_A.weight", "lora_B.weight", LENGTHS)


class Adapter(NamedTuple):
    """One adapter folder, read."""

    folder: Path
    config: LoraConfig
    tensors: Mapping[str, Tensor]
    """Layer path and factor -> tensor, without peft's own prefix."""


class Term(NamedTuple):
    """What one adapter adds to one weight: scale * up @ down."""

    down: Tensor
    """A [rank,in]."""
    up: Tensor
    """B [out,rank]."""
    scale: float
    turned: bool
    """The weight is stored [in,out], as by GPT-2's Conv1D."""
    lengths: Tensor | None
    """DoRA's [out]: what the rows of the sum are brought to."""


class Terms(NamedTuple):
    """An adapter's layers by path."""

    of: dict[str, Term]
    left: dict[str, Tensor]
    """Tensors that belong to none of them."""


def read_adapter(folder: Path) -> Adapter:
    """Raises PatinaError for a folder that holds no LoRA as a difference to its base's own weights."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise PatinaError(f"{folder}: holds no {name}; give the folder that a run wrote")
    config = PeftConfig.from_pretrained(str(folder))
    if not isinstance(config, LoraConfig):
        raise PatinaError(f"{folder / CONFIG}: of peft_type {config.peft_type}; only LORA can be read")
    if config.init_lora_weights not in PLAIN_STARTS:
        raise PatinaError(
            f"{folder / CONFIG}: init_lora_weights: {config.init_lora_weights} has changed the base's own weights; "
            "convert the adapter first (peft: save_pretrained with path_initial_model_for_weight_conversion)"
        )
    tensors = {key.removeprefix(PREFIX): tensor for key, tensor in load_file(folder / WEIGHTS).items()}
    return Adapter(folder, config, tensors)


def terms_of(adapter: Adapter, facts: PretrainedConfig) -> Terms:
    """What an adapter adds to a model that `facts` describe, scaled as peft scales it.

    Raises PatinaError where it is of another model.
    """
    layers = _layers(adapter, facts)
    left, found = dict(adapter.tensors), {}
    for path, layer in layers.items():
        down, up, lengths = (left.pop(f"{path}.{name}", None) for name in FACTORS)
        if down is None or up is None:
            raise PatinaError(f"{adapter.folder / WEIGHTS}: holds no factors for {path}, which its config names")
        turned = bool(getattr(layer, "fan_in_fan_out", False))
        found[path] = Term(down, up, layer.scaling["default"], turned, lengths)
    return Terms(found, left)


def skeleton(facts: PretrainedConfig) -> PreTrainedModel:
    """The model without numbers, to see its layers."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(deepcopy(facts))


def _layers(adapter: Adapter, facts: PretrainedConfig) -> dict[str, LoraLayer]:
    """The linear layers that an adapter's config means: peft itself is asked, patterns and all."""
    model = skeleton(facts)
    adapter.config.init_lora_weights = True
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fan_in_fan_out, which peft corrects
        try:
            LoraModel(model, adapter.config, "default")
        except ValueError as error:
            raise PatinaError(f"{adapter.folder / CONFIG}: does not fit its base ({error})") from error
    found = {path: layer for path, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    if embedded := [path for path, layer in found.items() if not layer.lora_A]:
        raise PatinaError(f"{adapter.folder}: {embedded[0]} is no factor of a linear layer; merge it with peft")
    return found
