"""The adapter folder that peft, transformers, vLLM and LLaMA-Factory load, with all that its user needs beside it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftConfig
from safetensors.torch import load_file
from torch import Tensor, nn

from patina.errors import PatinaError
from patina.family import ends_in
from patina.files import replacing_folder, require_room
from patina.lora.forms import MAGNITUDE
from patina.lora.inject import adapters, layers, trained
from patina.lora.pack import packed
from patina.tensors import save_tensors, size_of

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LENGTHS = "lora_magnitude_vector"
"""What peft calls DoRA's lengths in a file."""
PREFIX = "base_model.model."
"""What peft puts before a layer's path: its own two wrappers."""


@dataclass(frozen=True)
class Exporter:
    """Writes the live LoRA of one run, at any step, and reads each folder back before it is called done."""

    component: str
    module: nn.Module
    companions: Callable[[Path], None]
    """Writes into the folder what belongs beside the adapter: a tokenizer, for example."""
    folder: Path
    name: str
    base: str
    """What the config calls the base model."""
    alpha: float
    dropout: float
    dtype: torch.dtype
    task: Literal["CAUSAL_LM", "SEQ_CLS"] = "CAUSAL_LM"
    """What peft calls the kind of model."""
    whole: Sequence[str] = ()
    """Paths of what is trained whole (`inject.train_whole`)."""

    def at_step(self, step: int, epoch: float) -> Path:
        """Write `NAME-000100/`."""
        return self._write(f"{self.name}-{step:06d}")

    def final(self, step: int, epoch: float) -> Path:
        """Write `NAME/`."""
        return self._write(self.name)

    def _write(self, name: str) -> Path:
        """To a temporary name, then renamed: a folder that is there is whole. Raises OSError, PatinaError."""
        target, weights = self.folder / name, self._weights()
        require_room(self.folder, size_of(weights))
        facts = self._config(weights)
        with replacing_folder(target) as part:  # the same step may be there, taken before going on from an earlier one
            (part / CONFIG).write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            save_tensors({f"{PREFIX}{key}": tensor for key, tensor in weights.items()}, part / WEIGHTS)
            self.companions(part)
            verify(part, weights, self.alpha)
        return target

    def _weights(self) -> dict[str, Tensor]:
        """`model.layers.0.self_attn.q_proj.lora_A.weight` -> tensor; `alpha` / rank scales every product."""
        found = packed({self.component: self.module}, self.alpha)
        inside = {key.removeprefix(f"{self.component}."): tensor for key, tensor in found.items()}
        named = {_peft_key(key): _peft_shape(key, tensor) for key, tensor in inside.items()}
        adapted = adapters(self.module)
        for path, weights in trained(self.module).items():
            if path not in adapted:
                named |= {f"{path}.{name}": weight.detach() for name, weight in weights.items()}
        return {key: tensor.to("cpu", self.dtype).contiguous() for key, tensor in named.items()}

    def _config(self, weights: Mapping[str, Tensor]) -> dict[str, Any]:
        ranks = ranks_of(weights)
        (common, _), *_ = Counter(ranks.values()).most_common()
        made = LoraConfig(
            task_type=self.task,
            base_model_name_or_path=self.base,
            inference_mode=True,
            r=common,
            lora_alpha=int(self.alpha) if self.alpha == int(self.alpha) else self.alpha,  # pyright: ignore[reportArgumentType]
            lora_dropout=self.dropout,
            target_modules=list(target_names(ranks, list(layers(self.module)))),
            rank_pattern={path: rank for path, rank in ranks.items() if rank != common},
            use_dora=any(key.endswith(LENGTHS) for key in weights),
            modules_to_save=list(self.whole) or None,
        )
        facts = made.to_dict()
        return {key: sorted(value) if isinstance(value, set) else value for key, value in facts.items()}


def _peft_key(key: str) -> str:
    path, _, name = key.rpartition(".")
    return f"{path}.{LENGTHS}" if name == MAGNITUDE else f"{key}.weight"


def _peft_shape(key: str, tensor: Tensor) -> Tensor:
    """DoRA's [out,1] is [out] there."""
    return tensor.flatten() if key.endswith(MAGNITUDE) else tensor


def ranks_of(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """A layer's path -> its rank."""
    end = ".lora_A.weight"
    return {key.removesuffix(end): len(tensor) for key, tensor in weights.items() if key.endswith(end)}


def target_names(chosen: Mapping[str, int], known: Sequence[str]) -> tuple[str, ...]:
    """The last parts of the chosen paths, such as `q_proj`, where these mean no other layer; else the whole paths."""
    names = tuple(dict.fromkeys(path.rpartition(".")[2] for path in chosen))
    return names if {path for path in known if ends_in(path, names)} == set(chosen) else tuple(chosen)


def verify(folder: Path, weights: Mapping[str, Tensor], alpha: float) -> None:
    """Read an adapter folder back and compare it with what was to be written; raises PatinaError."""
    config = PeftConfig.from_pretrained(str(folder))
    found = load_file(folder / WEIGHTS)
    assert isinstance(config, LoraConfig)
    if {f"{PREFIX}{key}" for key in weights} != found.keys():
        raise PatinaError(f"{folder / WEIGHTS}: other layers than were trained; export again")
    for key, tensor in weights.items():
        stored = found[f"{PREFIX}{key}"]
        if stored.dtype != tensor.dtype or not torch.equal(stored, tensor):
            raise PatinaError(f"{folder / WEIGHTS}: {key} is not what was written; export again")
        if not stored.isfinite().all():
            raise PatinaError(f"{folder / WEIGHTS}: {key} holds NaN or infinity; export again, as save_precision: fp32")
    ranks = ranks_of(weights)
    read = {path: (config.rank_pattern or {}).get(path, config.r) for path in ranks}
    if read != ranks or config.lora_alpha != alpha:
        raise PatinaError(f"{folder / CONFIG}: ranks or alpha are not what was trained; export again")
