"""How like a merged model is to its base with the adapters on it: the logits of both after the same questions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from patina.bases.quantize import Quantize
from patina.errors import PatinaError
from patina.text.chat import adapted
from patina.text.load import load_model
from patina.text.rows import Turn
from patina.text.template import Template

if TYPE_CHECKING:
    from transformers import PreTrainedModel

QUESTIONS = ("What is the capital of France, and what is it known for?", "请用一句话介绍你自己。", "1 + 1 = ?")
MOST = 0.25
"""Of the adapters' effect on the logits; a layer forgotten or turned over costs more, rounding to 16 bits less."""


class Likeness(NamedTuple):
    """Over every token of QUESTIONS."""

    effect: float
    """Relative difference that the adapters make to the base's logits (Frobenius norm)."""
    lost: float
    """The merged model's difference from the base with adapters, as a share of that effect."""
    divergence: float | None
    """Nats a token from the quantised base with adapters to the merged model (Kullback-Leibler), where asked for."""


def compare(
    base: str, adapters: Sequence[tuple[Path, float]], merged: Path, words: Template, trained_on: Quantize
) -> Likeness:
    """Each model is loaded in fp32 on the CPU, one after the other: 4 bytes a parameter."""
    prompts = [words.prompt([Turn("user", question)]) for question in QUESTIONS]
    tuned = adapted(_loaded(base), base, adapters)
    wanted = _logits(tuned, prompts)
    with tuned.disable_adapter():
        before = _logits(tuned, prompts)
    del tuned
    found = _logits(_loaded(str(merged)), prompts)
    change = torch.linalg.norm(wanted - before)
    gap = torch.linalg.norm(found - wanted)
    lost = float(gap / change) if change > 0 else float(gap > 0)
    divergence = None
    if trained_on != "none":
        trained = _logits(adapted(_loaded(base, trained_on), base, adapters), prompts)
        divergence = float(_divergence(trained, found))
    return Likeness(float(change / torch.linalg.norm(before)), lost, divergence)


def require_like(like: Likeness, folder: Path) -> None:
    """Raises PatinaError where merging lost more than rounding can."""
    if not like.lost <= MOST:
        raise PatinaError(
            f"{folder}: not written, as the merged model would differ from base and adapters by {like.lost:.0%} of "
            "what the adapters do; where they do very little, rounding hides it: bake into a copy of the base in fp32"
        )


def _loaded(place: str, quantize: Quantize = "none") -> PreTrainedModel:
    return load_model(place, torch.float32, torch.device("cpu"), quantize)


@torch.no_grad()
def _logits(model: torch.nn.Module, prompts: Sequence[Sequence[int]]) -> Tensor:
    """[tokens of all prompts, vocabulary] fp32."""
    return torch.cat([model(input_ids=torch.tensor([ids])).logits[0].float() for ids in prompts])


def _divergence(wanted: Tensor, found: Tensor) -> Tensor:
    """Mean over tokens of KL(wanted || found), nats."""
    p, q = wanted.log_softmax(-1), found.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean()
