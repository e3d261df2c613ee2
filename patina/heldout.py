"""Pictures that are not trained on, and the loss on them: with the same noise at the same timesteps every time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from random import Random

import torch

from patina.data.captions import Captioned
from patina.data.dataset import Item, batch_of
from patina.data.texts import Texts
from patina.engine.step import EagerStep
from patina.errors import PatinaError
from patina.progress import Progress
from patina.task import Batch

TIMES = 4
"""Timesteps that each picture is measured at, one in each quarter of them all: the loss differs much more between
timesteps than a training changes it."""
EPOCH = -1
"""What the noise is drawn for; training never has it."""


def split(captioned: Sequence[Captioned], share: float, seed: int) -> tuple[list[Captioned], list[Captioned]]:
    """The pictures to train on, and `share` (0 to 1) of all to measure on, at least one; both in their order.

    Chosen by the seed and the file's name. Raises PatinaError where there are fewer than two.
    """
    if len(captioned) < 2:
        raise PatinaError(
            f"validation.split: of {len(captioned)} picture(s) none can be held out; give more, or name a folder with "
            "others as validation.data_dir"
        )
    number = min(max(round(share * len(captioned)), 1), len(captioned) - 1)
    drawn = sorted(range(len(captioned)), key=lambda at: sha256(f"{seed}\n{captioned[at].path.name}".encode()).digest())
    held = set(drawn[:number])
    kept = [pair for at, pair in enumerate(captioned) if at not in held]
    return kept, [captioned[at] for at in sorted(held)]


@dataclass(frozen=True)
class HeldOut:
    """The pictures with what computes their loss, in the numbers that training computes in."""

    items: Sequence[Item]
    step: EagerStep
    texts: Texts | None
    batch_size: int
    timesteps: int
    seed: int

    def measure(self, _: Progress) -> Mapping[str, float]:
        """The mean loss over all pictures and their timesteps; nothing of the training is touched."""
        found = [self.step.measure(self.texts.into(batch) if self.texts else batch) for batch in self.batches()]
        return {"validation/loss": sum(found) / (TIMES * len(self.items))}

    def batches(self) -> Iterator[Batch]:
        """Each picture TIMES times, with `t` [B] int64; what a picture is given is the same in batches of any size."""
        place = 0
        for bucket in sorted({item.bucket for item in self.items}):
            shown = [item for item in self.items if item.bucket == bucket for _ in range(TIMES)]
            for at in range(0, len(shown), self.batch_size):
                batch = batch_of(shown[at : at + self.batch_size], self.seed, EPOCH, place + at)
                yield {**batch, "t": torch.tensor([self._timestep(one) for one in batch["places"]])}
            place += len(shown)

    def _timestep(self, place: int) -> int:
        """One of the quarter that is this showing's turn."""
        within = Random(f"held out {self.seed} {place}").random()
        return int((place % TIMES + within) * self.timesteps / TIMES)
