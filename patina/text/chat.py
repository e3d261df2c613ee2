"""A base and what LoRAs made of it, asked the same questions: two conversations with one copy of the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from peft import PeftModel

from patina.engine.precision import choose_device
from patina.errors import PatinaError
from patina.text.generate import Manner, Reply, stream
from patina.text.load import load_model, load_tokenizer
from patina.text.rows import Turn
from patina.text.template import Template, choose_template

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOGETHER = "together"
"""What peft calls several adapters joined with their weights."""
Show = Callable[[str], None]


@dataclass
class Pair:
    """The two, and what was said so far: each remembers its own answers."""

    tuned: PeftModel
    template: Template
    manner: Manner
    said: dict[str, list[Turn]] = field(default_factory=lambda: {"base": [], "tuned": []})

    def ask_base(self, question: str, show: Show) -> Reply:
        """The base's answer, with the adapter switched off; `show` is given it as it comes."""
        return self._ask("base", question, show)

    def ask_tuned(self, question: str, show: Show) -> Reply:
        """The same with the adapter on."""
        return self._ask("tuned", question, show)

    def forget(self) -> None:
        """Begin both conversations anew."""
        for turns in self.said.values():
            turns.clear()

    def _ask(self, who: str, question: str, show: Show) -> Reply:
        turns = [*self.said[who], Turn("user", question)]
        manner = replace(self.manner, seed=self.manner.seed + len(turns))
        with self.tuned.disable_adapter() if who == "base" else nullcontext():
            reply = stream(self.tuned, self.template, turns, manner, show)  # pyright: ignore[reportArgumentType]
        self.said[who] = [*turns, Turn("assistant", reply.text)]
        return reply


def load_pair(
    base: str,
    loras: Sequence[tuple[Path, float]],
    template: str | None,
    device: Literal["auto", "cpu", "cuda"],
    manner: Manner,
) -> Pair:
    """The base with adapter folders on it, each with its weight, read by peft.

    `template` None: the one in the first folder, with its tokenizer. Raises PatinaError for what is no model or no
    adapter of it.
    """
    place = choose_device(device)
    model = load_model(base, torch.bfloat16 if place.type == "cuda" else torch.float32, place)
    first = str(loras[0][0]) if (loras[0][0] / "tokenizer_config.json").is_file() else base
    words = choose_template(load_tokenizer(first), template or "auto")
    return Pair(adapted(model, base, loras), words, manner)


def adapted(model: PreTrainedModel, base: str, loras: Sequence[tuple[Path, float]]) -> PeftModel:
    """A model, called `base` in messages, with adapter folders on it, each with its weight.

    Several are joined exactly, by concatenation (peft's `cat`). Raises PatinaError for what is no adapter of it.
    """
    names = [str(number) for number, _ in enumerate(loras)]
    try:
        tuned = PeftModel.from_pretrained(model, str(loras[0][0]), adapter_name=names[0])
        for name, (path, _) in zip(names[1:], loras[1:], strict=True):
            tuned.load_adapter(str(path), adapter_name=name)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise PatinaError(f"--lora: peft cannot put these on {base} ({reason}); are they of this base?") from error
    weights = [weight for _, weight in loras]
    if weights != [1.0]:
        tuned.add_weighted_adapter(names, weights, TOGETHER, combination_type="cat")
        tuned.set_adapter(TOGETHER)
    return tuned.eval()
