"""How the base's text encoder learns to read: behind words it does not know, and asked directly what a caption says."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from patina.demo.things import THINGS
from patina.demo.world import BACKDROPS, COLOURS, GROUNDS, RELATIONS, SIZES, Group, Scene

LENGTHS = (0, 0, 0, 2, 2, 3, 3, 4, 5)
"""Tokens put in front of a caption, where a trigger word stands; each as likely as it stands here often."""
COMMAS = 0.8
"""Share of prefixes that end in a comma."""
COMMA, END = 267, 49407
"""Token ids in CLIP's vocabulary; padding is END too, and all ids from 0 to 49405 are of words."""
IGNORED = -100
_GROUP = (sorted(THINGS), sorted(COLOURS), sorted(SIZES), (1, 2, 3))
ANSWERS = (*_GROUP, *_GROUP, RELATIONS, (*GROUNDS, *BACKDROPS))
"""What can be said to each question about a scene: kind, colour, size and count of either group, relation, backdrop."""


class Questions(nn.Module):
    """Asks the text encoder what the caption said; the loss of its answers. Only training needs it.

    By the picture alone an encoder learns slowly which colour goes with which of two things: the gradient comes through
    a whole denoiser. Asked directly it knows after some hundred steps, and the denoiser has something to listen to.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = [len(known) + 1 for known in ANSWERS]
        self.answer = nn.Linear(width, sum(self.sizes))

    def forward(self, hidden: Tensor, ids: Tensor, truth: Tensor) -> Tensor:
        """Mean cross-entropy of hidden states [B, L, width] of tokens [B, L] against answers [B, questions].

        Asked at the end token and at the last of the padding, which see the whole caption.
        """
        end = (ids == END).int().argmax(1)
        rows = torch.arange(len(ids), device=ids.device)
        heard = torch.stack([hidden[rows, end], hidden[:, -1]], dim=1).float()
        said = self.answer(heard).split(self.sizes, dim=-1)
        losses = [
            F.cross_entropy(part.flatten(0, 1), answer.repeat_interleave(2), ignore_index=IGNORED)
            for part, answer in zip(said, truth.T, strict=True)
        ]
        return torch.stack(losses).mean()


def answers(scenes: Sequence[Scene]) -> Tensor:
    """The true answer to each of the questions as its place in ANSWERS, 0 where the scene has none: [N, questions]."""
    return torch.tensor([[_place(*pair) for pair in zip(_said(scene), ANSWERS, strict=True)] for scene in scenes])


def _said(scene: Scene) -> list[object]:
    groups: list[Group | None] = [*scene.groups, None][:2]
    told = [(g.kind, g.colour, g.size, g.count) if g else (None,) * 4 for g in groups]
    return [*told[0], *told[1], scene.relation, scene.backdrop]


def _place(answer: object, known: Sequence[object]) -> int:
    return list(known).index(answer) + 1 if answer in known else 0


def with_prefix(plain: Tensor, lengths: Tensor) -> Tensor:
    """Token ids [B, L] of captions to those behind random words, of as many tokens as one of `lengths` says."""
    rows, positions = len(plain), torch.arange(plain.shape[1], device=plain.device)[None]
    length = lengths[torch.randint(len(lengths), (rows, 1), device=plain.device)]
    words = torch.randint(END - 1, plain.shape, device=plain.device)
    punctuated = (positions == length) & (torch.rand(rows, 1, device=plain.device) < COMMAS)
    front = (positions > 0) & (positions <= length)
    return torch.where(front, words.masked_fill(punctuated, COMMA), plain.gather(1, (positions - length).clamp(min=0)))
