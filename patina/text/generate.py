"""What a model answers: many conversations at a time, or one, word by word."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from patina.text.checkpointing import keeping
from patina.text.rows import Turn
from patina.text.template import Template

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Manner:
    """How the next token is chosen."""

    most: int = 200
    """Tokens of an answer at most."""
    temperature: float = 0.0
    """0: always the likeliest."""
    top_p: float = 0.9
    """With a temperature: out of the likeliest that together have this probability (Holtzman et al. 2020)."""
    seed: int = 0


class Reply(NamedTuple):
    """An answer."""

    text: str
    stopped: bool
    """Whether the model ended it itself."""


def replies(
    model: PreTrainedModel, template: Template, asked: Sequence[Sequence[Turn]], manner: Manner, batch: int = 16
) -> list[Reply]:
    """The answer to each conversation, `batch` at a time."""
    prompts = [template.prompt(turns) for turns in asked]
    parts = [prompts[at : at + batch] for at in range(0, len(prompts), batch)]
    return [reply for part in parts for reply in _generate(model, template, part, manner)]


def stream(
    model: PreTrainedModel, template: Template, turns: Sequence[Turn], manner: Manner, show: Callable[[str], None]
) -> Reply:
    """The answer to one conversation; `show` is given each part of it as soon as it is known."""
    prompt = template.prompt(turns)
    return _generate(model, template, [prompt], manner, _Telling(template, show, len(prompt)))[0]


def stops(model: PreTrainedModel, template: Template) -> list[int]:
    """The tokens that end an answer: the template's, the tokenizer's, and those that the model names itself."""
    named = model.generation_config.eos_token_id if model.generation_config else None
    more = named if isinstance(named, list) else [named]
    found = [template.end, template.tokenizer.eos_token_id, *more]
    return sorted({int(token) for token in found if token is not None})


@torch.no_grad()
def _generate(
    model: PreTrainedModel,
    template: Template,
    prompts: Sequence[Sequence[int]],
    manner: Manner,
    telling: _Telling | None = None,
) -> list[Reply]:
    ends = stops(model, template)
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), ends[0])
    seen = torch.zeros(len(prompts), width, dtype=torch.int64)
    for row, prompt in enumerate(prompts):  # at the right edge, where the answer goes on
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        seen[row, width - len(prompt) :] = 1
    chosen = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if manner.temperature > 0:
        chosen = {"do_sample": True, "temperature": manner.temperature, "top_p": manner.top_p, "top_k": None}
    device = model.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), keeping(model):
        torch.manual_seed(manner.seed)
        made = model.generate(  # pyright: ignore[reportCallIssue]
            input_ids=ids.to(device),
            attention_mask=seen.to(device),
            max_new_tokens=manner.most,
            eos_token_id=ends,
            pad_token_id=ends[0],
            streamer=telling,
            **chosen,
        )
    assert isinstance(made, Tensor)
    return [_reply(template, row.tolist(), ends) for row in made[:, width:]]


def _reply(template: Template, ids: list[int], ends: Sequence[int]) -> Reply:
    last = next((at for at, token in enumerate(ids) if token in ends), None)
    said = ids if last is None else ids[:last]
    return Reply(_words(template, said).strip(), last is not None)


def _words(template: Template, ids: list[int]) -> str:
    return str(template.tokenizer.decode(ids, skip_special_tokens=True))


class _Telling:
    """Gives on what `generate` makes, in whole characters."""

    def __init__(self, template: Template, show: Callable[[str], None], skip: int) -> None:
        self.template, self.show, self.skip = template, show, skip
        self.ids: list[int] = []
        self.told = 0

    def put(self, ids: Tensor) -> None:
        """Take the prompt first, which is not told, and then one token at a time."""
        fresh = ids.flatten().tolist()
        self.skip, fresh = max(0, self.skip - len(fresh)), fresh[self.skip :]
        self.ids += fresh
        text = _words(self.template, self.ids)
        if not text.endswith("\ufffd"):  # half of a letter: the next token has the rest
            self._tell(text)

    def end(self) -> None:
        """Tell what is left."""
        self._tell(_words(self.template, self.ids))

    def _tell(self, text: str) -> None:
        self.show(text[self.told :])
        self.told = len(text)
