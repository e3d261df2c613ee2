"""The files that people take away: the LoRA, and what a web UI shows beside it."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from patina.family import Family
from patina.files import write_text
from patina.lora import metadata, verify
from patina.lora.file import write
from patina.lora.pack import baked, packed
from patina.watch.console import say


@dataclass(frozen=True)
class Exporter:
    """Writes the live LoRA of one run, at any step, and reads each file back before it is called done."""

    family: Family
    modules: Mapping[str, nn.Module]
    folder: Path
    name: str
    alpha: float
    dtype: torch.dtype
    facts: metadata.TrainingFacts
    spec: metadata.Modelspec
    level: metadata.Level
    bake: int | None = None
    """Rank of the plain LoRA that DoRA is written as; None: written as it is."""

    def at_step(self, step: int, epoch: float) -> Path:
        """Write `NAME-000100.safetensors`; the name that a web UI's prompt uses has the step too."""
        return self._write(f"{self.name}-{step:06d}", step, epoch)

    def final(self, step: int, epoch: float) -> Path:
        """Write `NAME.safetensors` and `NAME.json`."""
        path = self._write(self.name, step, epoch)
        write_text(path.with_suffix(".json"), sidecar(self.family, self.spec.trigger_phrase, self.facts))
        return path

    def _write(self, name: str, step: int, epoch: float) -> Path:
        path = self.folder / f"{name}.safetensors"
        facts = replace(
            self.facts, output_name=name, steps=step, epoch=round(epoch), training_finished_at=round(time.time())
        )
        header = metadata.kept(metadata.build(facts, self.family, self.spec), self.level)
        state = self._state()
        write(path, state, self.family, self.alpha, self.dtype, header)
        verify.verify(path, self.modules, self.family, self.alpha, self.dtype, state)
        return path

    def _state(self) -> Mapping[str, Tensor]:
        if self.bake is None:
            return packed(self.modules, self.alpha)
        state, lost = baked(self.modules, self.alpha, self.bake)
        say(f"DoRA baked into a LoRA of rank {self.bake}, which leaves out {lost:.1%} of the change")
        return state


def sidecar(family: Family, trigger: str | None, facts: metadata.TrainingFacts) -> str:
    """The JSON that A1111 and Forge read beside a LoRA: what to insert with it, and notes."""
    notes = f"Trained by Patina on {facts.num_train_images} pictures, rank {facts.network_dim}."
    shown = {
        "description": facts.training_comment or "",
        "sd version": family.webui_version,
        "activation text": trigger or "",
        "preferred weight": 1.0,
        "negative text": "",
        "notes": notes,
    }
    return json.dumps(shown, indent=2, ensure_ascii=False) + "\n"
