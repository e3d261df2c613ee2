"""Text mode's part of a run: its batches, what is measured, and the adapter folder."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path

from patina.config import Config
from patina.course import measures
from patina.engine.precision import DTYPES, Precision
from patina.loop import Plan
from patina.lora.off import switched_off
from patina.lora.plan import file_alpha
from patina.progress import Progress
from patina.resume import fingerprint
from patina.task import Batch
from patina.tasks.text import COMPONENT, TextTask
from patina.text.advice import Facts, advise, as_yaml
from patina.text.dataset import Rows
from patina.text.export import Exporter
from patina.text.generate import Manner, replies
from patina.text.measure import Exam, held_out
from patina.text.pack import Stream
from patina.text.questions import Questions
from patina.text.template import Template
from patina.watch.answers import Answers, Asked
from patina.watch.console import say, text_farewell
from patina.watch.watcher import Watcher

UNIT = "trained tokens"
MOST = 20.0
"""The largest loss that a perplexity is computed of: half a billion."""


@dataclass(frozen=True)
class Conversations:
    """What a run on texts trains on, shows and writes; a `patina.session.Medium`."""

    config: Config
    task: TextTask
    template: Template
    precision: Precision
    plan: Plan
    rows: Rows
    stream: Stream
    how: Sequence[str]
    """What to say of the way that rows are put into batches."""
    unseen: Stream | None
    """The rows of `validation_data`."""
    exam: Exam | None
    """Those of them that are answered, and the answers are scored."""
    facts: Facts
    """What the settings that it asks for are made of."""
    questions: Questions
    """What is asked while it trains, to be read."""

    @property
    def what(self) -> str:
        return f"a LoRA for {self.config.base_model} ({type(self.task.model).__name__})"

    @property
    def result(self) -> Path:
        return self.config.output_dir / self.config.name

    def report(self) -> Sequence[str]:
        unseen = [f"{len(self.unseen.rows)} other rows to measure on"] if self.unseen else []
        if self.exam:
            unseen += [f"{len(self.exam.asked)} of these answered, in {self.exam.most} tokens at most"]
        lines = [*self.rows.report(), *unseen, *self.how, f"written by the template: {self.template.name}"]
        return [f"texts     {line}" for line in lines]

    def settings(self) -> Mapping[str, object]:
        return {
            "text.template": self.template.name,
            "max_length": self.rows.max_length,
            "text.train_on": self.config.text.train_on,
            "packed": self.stream.packed,
            "rows": len(self.rows.encoded),
            "tokens": self.rows.tokens,
            "words": self._words,
        }

    def advice(self) -> Sequence[str]:
        config, facts = self.config, self.facts
        tips = advise(facts)
        sections = {"network": config.network, "validation": config.validation}
        inside = (f"{name}.{key}" for name, section in sections.items() for key in section.model_fields_set)
        written = [*config.model_fields_set, *inside]
        now = {tip.key: reduce(getattr, tip.key.split("."), config) for tip in tips}
        now |= {"lora_alpha": config.alpha, "max_length": self.rows.max_length}
        return as_yaml(tips, now, written)

    @cached_property
    def _words(self) -> str:
        return fingerprint(row.ids.numpy().tobytes() for row in self.rows.encoded)

    def batches(self, start: int) -> Iterator[Batch]:
        return self.stream.batches(start)

    def heaviest(self) -> Batch:
        return self.stream.heaviest()

    def watcher(self, start: int, config: str) -> Watcher:
        folder, steps = self.config.output_dir, self.plan.steps
        told = {"unit": UNIT, "measure": self.measure, "halts": self._measures, "answers": self._answers()}
        return Watcher(folder, steps, start, None, config, **told)

    def _measures(self, step: int) -> bool:
        """Whether what is held out is measured after a step."""
        return self.unseen is not None and measures(self.config, self.plan, step)

    def _answers(self) -> Answers | None:
        """None where nothing is asked; one process alone has no whole model to ask, where they share it out."""
        config, every = self.config, self.config.preview.every
        if every == 0 or not self.questions.each or config.engine.shard:
            return None
        asked = [Asked(one.shown, one.reference) for one in self.questions.each]
        often = config.save_steps if every is None else every
        return Answers(asked, self._ask, config.output_dir, config.name, often, self.plan.steps)

    def _ask(self, tuned: bool) -> list[str]:
        model, turns = self.task.model, [one.turns for one in self.questions.each]
        with self.precision.autocast(), nullcontext() if tuned else switched_off(model):
            return [reply.text for reply in replies(model, self.template, turns, Manner(self.questions.most))]

    def measure(self, progress: Progress) -> dict[str, float]:
        """What else is known of a step, by the names of its curves; here also the validation, where it is due."""
        tally = self.task.tally()
        found = {
            "perplexity": math.exp(min(progress.loss, MOST)),
            "token_accuracy": tally.right / max(1, tally.trained),
            "speed/tokens_per_second": tally.tokens / progress.seconds if progress.seconds > 0 else math.nan,
        }
        if self.unseen and self._measures(progress.step):
            with self.precision.autocast():
                loss, accuracy = held_out(self.task, self.unseen)
                said = self.exam.measure(self.task.model, self.template) if self.exam else {}
            more = {"loss": loss, "perplexity": math.exp(min(loss, MOST)), "token_accuracy": accuracy, **said}
            found |= {f"validation/{name}": number for name, number in more.items()}
        return found

    def exporter(self) -> Exporter:
        config = self.config
        return Exporter(
            COMPONENT,
            self.task.model,
            self.template.save,
            config.output_dir,
            config.name,
            config.base_model,
            file_alpha(config.network, config.lora_rank, config.alpha),
            config.network.dropout,
            DTYPES[config.save_precision],
        )

    def farewell(self, path: Path, watcher: Watcher) -> None:
        ask = f"python tools/chat.py --base {self.config.base_model} --lora {path}"
        text_farewell(path, ask, self.config.output_dir / "logs")
        if watcher.answers:
            say(f"  Its answers beside the base's, step by step: {watcher.answers.page}")
