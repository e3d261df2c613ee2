"""What a picture's caption says each time it is shown: its tags in another order, some of them left out, or nothing."""

from random import Random
from typing import NamedTuple

from patina.task import Batch


class Wording(NamedTuple):
    """How captions change. Tags are what stands between commas."""

    shuffle: bool = False
    keep: int = 0
    """Tags at the beginning that stay where they are and are never left out."""
    tag_dropout: float = 0.0
    """How likely each other tag is left out."""
    caption_dropout: float = 0.0
    """How likely the whole caption is."""

    @property
    def varies(self) -> bool:
        """Whether a caption can become more than itself and nothing: too much to be encoded beforehand."""
        return self.shuffle or self.tag_dropout > 0


def reworded(batch: Batch, wording: Wording, seed: int) -> Batch:
    """The batch with its captions as this showing of its pictures has them, a function of seed, epoch and place."""
    showings = zip(batch["captions"], batch["places"], strict=True)
    return {**batch, "captions": [say(text, wording, seed, batch["epoch"], place) for text, place in showings]}


def say(caption: str, wording: Wording, seed: int, epoch: int, place: int) -> str:
    """One caption. Draws are made whether or not they are used, so that one setting does not change another's."""
    random = Random(f"wording {seed} {epoch} {place}")
    nothing = random.random() < wording.caption_dropout
    tags = [tag.strip() for tag in caption.split(",")]
    kept, others = tags[: wording.keep], tags[wording.keep :]
    stays = [random.random() >= wording.tag_dropout for _ in others]
    if wording.shuffle:
        random.shuffle(others)
    if nothing:
        return ""
    if not wording.varies:
        return caption
    return ", ".join([*kept, *(tag for tag, stay in zip(others, stays, strict=True) if stay)])
