"""Teaching the base's text encoder to read past words in front of a caption, where a trigger word stands."""

# pyright: reportArgumentType=false
# transformers types what its decorators wrap as methods that want another self.

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTextModel

from patina.demo.fit import Round, fit
from patina.demo.world import scenes
from patina.tokenizer import clip_tokenizer

LENGTHS = (0, 0, 0, 2, 2, 3, 3, 4, 5)
"""Tokens put in front of a caption; each as likely as it stands here often."""
COMMAS = 0.8
"""Share of prefixes that end in a comma."""
EMPTY = 0.1
"""Share of captions that are left out, as in the base's own training."""
COMMA, END = 267, 49407
"""Token ids in CLIP's vocabulary; padding is END too, and all ids from 0 to 49405 are of words."""
TEXT_WEIGHT, PREFIX_WEIGHT = 5.0, 0.3
"""Weights in the loss of the caption's tokens and the prefix's, beside the padding's 1."""


def teach(work: Path, out: Path, device: torch.device, rounds: Sequence[Round]) -> None:
    """Let the text encoder in `out` give a caption behind a prefix what it gives the caption alone; save it there.

    All captions of the base's training begin with the first token, so that to the untrained ear every word of
    "neonpt, a red boat" stands in the wrong place. The teacher is the encoder as it was. Token embeddings stay as they
    are; `work` is not needed.
    """
    torch.manual_seed(0)
    student = CLIPTextModel.from_pretrained(out, dtype=torch.float32).to(device)
    teacher = copy.deepcopy(student).requires_grad_(False).eval()
    for plan in rounds:
        learn(student, teacher, plan)
    student.eval().half().save_pretrained(out)


def learn(student: CLIPTextModel, teacher: CLIPTextModel, plan: Round) -> None:
    """One round."""
    student.train().get_input_embeddings().requires_grad_(False)
    captions = [scene.caption() for scene in scenes(plan.scenes, plan.seed)]
    captions += [""] * round(len(captions) * EMPTY)
    tokens = clip_tokenizer()(captions, padding="max_length", return_tensors="pt").input_ids.to(student.device)
    lengths = torch.tensor(LENGTHS, device=tokens.device)

    def loss() -> Tensor:
        plain = tokens[torch.randint(len(tokens), (plan.batch,), device=tokens.device)]
        ids, place = with_prefix(plain, lengths)
        with torch.no_grad():
            known = teacher(plain).last_hidden_state
        # Behind a prefix of k, position p is the teacher's p - k; the prefix itself is to be as the start token.
        goal = known.gather(1, place[..., None].expand_as(known))
        errors = (student(ids).last_hidden_state - goal).square().mean(-1) / known.var()
        weights = _weights(ids, place)
        return (errors * weights).sum() / weights.sum()

    fit(loss, [student], plan, name="prefix", warmup=50)


def with_prefix(plain: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Token ids [B, L] of captions to those behind random prefixes, and which place in `plain` each comes from."""
    rows, positions = len(plain), torch.arange(plain.shape[1], device=plain.device)[None]
    length = lengths[torch.randint(len(lengths), (rows, 1), device=plain.device)]
    words = torch.randint(49406, plain.shape, device=plain.device)
    punctuated = (positions == length) & (torch.rand(rows, 1, device=plain.device) < COMMAS)
    place = (positions - length).clamp(min=0)
    front = (positions > 0) & (positions <= length)
    return torch.where(front, words.masked_fill(punctuated, COMMA), plain.gather(1, place)), place


def _weights(ids: Tensor, place: Tensor) -> Tensor:
    """[B, L] as TEXT_WEIGHT says."""
    front = (place == 0) & (torch.arange(ids.shape[1], device=ids.device) > 0)
    return torch.where(front, PREFIX_WEIGHT, torch.where((ids == END) | (place == 0), 1.0, TEXT_WEIGHT))
