"""Classification's part of a run: its batches, what is measured, and the adapter folder with its head."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from patina.config import Config
from patina.course import measures
from patina.engine.precision import DTYPES, Precision
from patina.loop import Plan
from patina.lora.plan import file_alpha
from patina.progress import Progress
from patina.resume import fingerprint
from patina.task import Batch
from patina.tasks.label import LabelTask
from patina.tasks.text import COMPONENT
from patina.tensors import ByRust
from patina.text.export import Exporter
from patina.text.labelset import LabelSet, LabelStream
from patina.text.verdicts import accuracy, confusion, macro_f1
from patina.watch.confusion import draw_confusion
from patina.watch.console import classifier_farewell
from patina.watch.watcher import Watcher

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNIT = "rows"
CONFIG = "classifier.json"
OURS = ("quantization_config", "dtype", "_name_or_path")
"""What the live model's config says of this run alone."""


@dataclass(frozen=True)
class HeldOut:
    """Rows that are not trained on, and what the model made of them when it was last asked."""

    task: LabelTask
    stream: LabelStream
    labels: Sequence[str]
    figures: dict[str, Image.Image] = field(default_factory=dict)
    """Drawn and not yet shown."""

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Loss, accuracy and macro-F1 over all rows; the confusion matrix is drawn."""
        told = [self._told(batch) for batch in islice(self.stream.batches(0), self.stream.per_epoch())]
        logits, labels = (torch.cat(parts) for parts in zip(*told, strict=True))
        matrix = confusion(labels, logits.argmax(-1), len(self.labels))
        right, f1 = accuracy(matrix), macro_f1(matrix)
        title = f"accuracy {right:.1%}, macro-F1 {f1:.3f}, {len(labels):,} rows"
        self.figures["validation/confusion"] = draw_confusion(matrix.tolist(), self.labels, title)
        return {"loss": float(F.cross_entropy(logits, labels)), "accuracy": right, "macro_f1": f1}

    def _told(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.task.logits(batch).cpu(), batch["labels"]

    def shown(self) -> Mapping[str, Image.Image]:
        """What was drawn since the last call."""
        found = dict(self.figures)
        self.figures.clear()
        return found


@dataclass(frozen=True)
class Labels:
    """What a run on labelled texts trains on, shows and writes; a `patina.session.Medium`."""

    config: Config
    task: LabelTask
    tokenizer: PreTrainedTokenizerBase
    precision: Precision
    plan: Plan
    rows: LabelSet
    stream: LabelStream
    whole: Sequence[str]
    """Paths of what is trained whole."""
    fresh: bool
    """Whether the head is new."""
    unseen: HeldOut | None

    @property
    def what(self) -> str:
        return f"a LoRA and a head for {self.config.base_model} ({type(self.task.model).__name__})"

    @property
    def result(self) -> Path:
        return self.config.output_dir / self.config.name

    def report(self) -> Sequence[str]:
        head = f"{', '.join(self.whole)} {'begins anew' if self.fresh else 'comes with the base'} and is trained whole"
        unseen = [f"{len(self.unseen.stream.classes)} other rows to measure on"] if self.unseen else []
        return [f"texts     {line}" for line in (*self.rows.report(), *unseen)] + [f"head      {head}"]

    def settings(self) -> Mapping[str, object]:
        return {
            "max_length": self.rows.max_length,
            "text.labels": list(self.rows.labels),
            "rows": len(self.rows.encoded),
            "tokens": self.rows.tokens,
            "words": self._words,
        }

    @cached_property
    def _words(self) -> str:
        pairs = zip(self.rows.encoded, self.rows.classes.tolist(), strict=True)
        return fingerprint(row.ids.numpy().tobytes() + bytes(str(number), "ascii") for row, number in pairs)

    def advice(self) -> Sequence[str]:
        return ()

    def batches(self, start: int) -> Iterator[Batch]:
        return self.stream.batches(start)

    def heaviest(self) -> Batch:
        return self.stream.heaviest()

    def watcher(self, start: int, config: str) -> Watcher:
        folder, steps = self.config.output_dir, self.plan.steps
        figures = self.unseen.shown if self.unseen else dict
        return Watcher(folder, steps, start, None, config, unit=UNIT, measure=self.measure, figures=figures)

    def measure(self, progress: Progress) -> dict[str, float]:
        """What else is known of a step, by the names of its curves; here also the validation, where it is due."""
        tally = self.task.tally()
        found = {
            "accuracy": tally.right / max(1, tally.rows),
            "speed/tokens_per_second": tally.tokens / progress.seconds if progress.seconds > 0 else math.nan,
        }
        if self.unseen and measures(self.config, self.plan, progress.step):
            with self.precision.autocast():
                found |= {f"validation/{name}": number for name, number in self.unseen.measure().items()}
        return found

    def exporter(self) -> Exporter:
        config = self.config
        return Exporter(
            COMPONENT,
            self.task.model,
            self._companions,
            config.output_dir,
            config.name,
            config.base_model,
            file_alpha(config.network, config.lora_rank, config.alpha),
            config.network.dropout,
            DTYPES[config.save_precision],
            "SEQ_CLS",
            self.whole,
        )

    def _companions(self, folder: Path) -> None:
        """The tokenizer, and the model's config: how many labels, what they are called, what padding is made of.

        Not as `config.json`: transformers would take the folder for a whole model.
        """
        with ByRust(folder):
            self.tokenizer.save_pretrained(folder)
        model = self.task.model
        known = {key: fact for key, fact in model.config.to_dict().items() if key not in OURS}
        facts = {**known, "architectures": [type(model).__name__]}
        (folder / CONFIG).write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def farewell(self, path: Path, watcher: Watcher) -> None:
        classifier_farewell(path, self.config.base_model, self.config.output_dir / "logs")
