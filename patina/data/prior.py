"""Regularisation pictures, by which a base keeps drawing a class as it does: their captions, and which an epoch shows.

Prior preservation is from DreamBooth (Ruiz et al. 2022, arXiv:2208.12242, section 3.2).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random

from patina.data.buckets import Size
from patina.data.captions import Captioned
from patina.data.wording import MARK, has_trigger
from patina.errors import PatinaError


def turns(buckets: Sequence[Size], wanted: int, seed: int, epoch: int) -> list[int]:
    """The `wanted` showings of an epoch (from 0): indices into `buckets`, a function of the arguments alone.

    Each bucket has its share, to a showing, and the same one in every epoch, so that epochs are equally long. Within it
    an epoch goes on where the last one ended, round and round in an order that the seed decides: all come up before one
    comes up again. Where `wanted` is less than there are, a bucket whose share is less than one showing may have none.
    """
    found: list[int] = []
    for bucket, share in _shares(Counter(buckets), wanted).items():
        members = [index for index, own in enumerate(buckets) if own == bucket]
        Random(f"prior {seed} {bucket}").shuffle(members)
        found += [members[at % len(members)] for at in range(epoch * share, (epoch + 1) * share)]
    return found


def _shares(counts: Mapping[Size, int], wanted: int) -> dict[Size, int]:
    """`wanted` parted as `counts` are, in whole numbers: those with the largest remainders have one more."""
    total, sizes = sum(counts.values()), sorted(counts)
    shares = {size: counts[size] * wanted // total for size in sizes}
    by_remainder = sorted(sizes, key=lambda size: -(counts[size] * wanted % total))
    for size in by_remainder[: wanted - sum(shares.values())]:
        shares[size] += 1
    return shares


def as_prior(captioned: Sequence[Captioned], triggers: Sequence[str]) -> list[Captioned]:
    """The pictures as those of regularisation.

    Raises PatinaError where a line of a caption begins with a trigger word, or has the mark of its place.
    """
    for pair in captioned:
        for line in pair.caption.split("\n"):
            if MARK in line or any(has_trigger(trigger, line) for trigger in triggers):
                said = f"leave {' or '.join(triggers) or MARK} out, or the word is taught what it must not mean"
                raise PatinaError(f"{pair.path}: a regularisation picture's caption has the trigger word; {said}")
    return [replace(pair, prior=True) for pair in captioned]
