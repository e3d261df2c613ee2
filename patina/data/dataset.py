"""The training set of image mode: pictures as latents with their captions, and the endless stream of batches."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from patina.data.buckets import Buckets, Fit, Size, fit, order
from patina.data.cache import Encoded, View, encode_all
from patina.data.captions import Captioned
from patina.data.images import picture_size
from patina.data.masks import UNMASKED, Masking, masks_of
from patina.data.prior import turns
from patina.data.variants import PLAIN, choose, ids, variants
from patina.data.wording import AS_WRITTEN, Wording, plain, say
from patina.task import Batch

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

LISTED = 6
"""Buckets that a report names before it sums up the rest."""
MOST_WORKERS = 8
"""Threads that read pictures where nothing else is said; more only help on slow network disks."""


class Latent(NamedTuple):
    """One variant of a picture, as the autoencoder and SDXL are told of it.

    Kept in fp32: 131 KB at 512 x 512 pixels, so 1.3 GB for 10,000 pictures: in memory when they have just been made,
    and mapped where the cache has packed them. Half of it would save little beside a base model, and round the numbers.
    """

    mean: Tensor
    """[C,h,w] fp32: the middle of the picture's latents, on the denoiser's scale."""
    std: Tensor
    """[C,h,w] fp32: their spread."""
    sizes: tuple[int, ...]
    """See `patina.data.buckets.size_ids`."""
    mask: Tensor | None = None
    """[1,h,w] fp32: what each place weighs in the loss; None: a run without masks."""


@dataclass(frozen=True, eq=False)
class Item:
    """One picture of the training set, ready to be trained on."""

    path: Path
    caption: str
    bucket: Size
    latents: tuple[Latent, ...]
    """Of its variants, of which each showing draws one; all of one shape."""
    repeats: int
    """How many times an epoch shows it."""
    folder: Path
    """The folder of pictures that it is of."""
    weight: float = 1.0
    """What its error is multiplied by."""
    prior: bool = False
    """Whether it is a regularisation picture, of which an epoch shows as many as of the others."""
    wording: Wording = AS_WRITTEN
    """How its caption changes from one showing to the next."""

    @property
    def plain(self) -> str:
        """Its caption with nothing drawn."""
        return plain(self.caption, self.wording)

    @property
    def shape(self) -> torch.Size:
        """(C,h,w) of its latents."""
        return self.latents[0].mean.shape


def load_items(
    captioned: Sequence[Captioned],
    vae: AutoencoderKL,
    *,
    buckets: Buckets,
    cache_dir: Path,
    workers: int | None,
    masking: Masking = UNMASKED,
) -> list[Item]:
    """Encode the pictures, or find them in the cache, in the order given; `workers` None: chosen from the CPU count.

    Raises PatinaError that lists every picture that cannot be read, or names a mask that cannot be used.
    """
    threads = min(os.cpu_count() or 1, MOST_WORKERS) if workers is None else workers
    found = _encoded(captioned, vae, buckets, cache_dir, threads)
    masks = iter(masks_of([pair for views in found for pair in views], masking, cache_dir, threads))
    items = []
    for pair, views in zip(captioned, found, strict=True):
        latents = tuple(
            Latent(entry.mean, entry.std, ids(entry.size, buckets, view.variant), next(masks)) for view, entry in views
        )
        items.append(_item(pair, views[0][1].fit, latents))
    return items


def _encoded(
    captioned: Sequence[Captioned],
    vae: AutoencoderKL,
    buckets: Buckets,
    folder: Path,
    workers: int,
) -> list[list[tuple[View, Encoded]]]:
    """Each picture's views, the plain one first: only when its size is known can be told which others there are."""
    upright = [View(pair.path) for pair in captioned]
    first = encode_all(upright, vae, buckets, folder, workers)
    others = [
        [View(pair.path, kind) for kind in variants(pair.variety, entry.fit)[1:]]
        for pair, entry in zip(captioned, first, strict=True)
    ]
    views = [view for own in others for view in own]
    rest = iter(encode_all(views, vae, buckets, folder, workers) if views else [])
    return [
        [(view, entry), *zip(own, islice(rest, len(own)), strict=True)]
        for view, entry, own in zip(upright, first, others, strict=True)
    ]


def _item(pair: Captioned, how: Fit, latents: tuple[Latent, ...]) -> Item:
    folder, said = pair.folder or pair.path.parent, (pair.weight, pair.prior, pair.wording)
    return Item(pair.path, pair.caption, how.bucket, latents, pair.repeats, folder, *said)


def unencoded(
    captioned: Sequence[Captioned],
    *,
    buckets: Buckets,
    channels: int,
    scale: int,
    masked: bool = False,
) -> list[Item]:
    """What `load_items` would give, by the heads of the files alone: the latents, `scale` times smaller, are noise.

    Pictures of a bucket share theirs, each has one variant, and where they are `masked` a white mask. Raises
    PatinaError for the first picture that cannot be read.
    """
    noise: dict[Size, Tensor] = {}
    found = []
    for pair in captioned:
        size = picture_size(pair.path)
        how = fit(size, buckets)
        width, height = how.bucket
        mean = noise.setdefault(how.bucket, torch.randn(channels, height // scale, width // scale))
        mask = torch.ones_like(mean[:1]) if masked else None
        latent = Latent(mean, torch.ones_like(mean), ids(size, buckets, PLAIN), mask)
        found.append(_item(pair, how, (latent,)))
    return found


def epochs(items: Sequence[Item], batch_size: int, seed: int, start_batch: int) -> Iterator[Batch]:
    """The endless stream of batches from its `start_batch`-th on (from 0), a function of the arguments alone.

    A batch has `mean` and `std` [B,C,h,w] fp32, `weights` [B] fp32 (see `Item`), `captions` and file `names` (B
    strings), `time_ids` [B,6] fp32 (see `size_ids`), in a run with masks `mask` [B,1,h,w] fp32, `epoch` (from 0) and
    `places`: the position of each picture in its epoch, which no other of the epoch has; by seed, epoch and place a
    picture's variant and the wording of its caption are drawn. A bucket's last batch of an epoch may be short.
    """
    first, skipped = divmod(start_batch, batches_per_epoch(items, batch_size))
    for epoch in count(first):
        shown, place = _shown(items, seed, epoch), 0
        for number, indices in enumerate(order([item.bucket for item in shown], batch_size, seed, epoch)):
            if epoch > first or number >= skipped:
                yield batch_of([shown[index] for index in indices], seed, epoch, place)
            place += len(indices)


def _shown(items: Sequence[Item], seed: int = 0, epoch: int = 0) -> list[Item]:
    """What an epoch shows; each bucket has as many in one epoch as in another."""
    trained, prior = ([item for item in part for _ in range(item.repeats)] for part in parted(items))
    return trained + [prior[at] for at in turns([item.bucket for item in prior], len(trained), seed, epoch)]


def parted(items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """The pictures to train on, and those of regularisation."""
    return [item for item in items if not item.prior], [item for item in items if item.prior]


def batch_of(items: Sequence[Item], seed: int, epoch: int, place: int) -> Batch:
    """These pictures as the ones that an epoch shows from `place` on; see `epochs`."""
    places = range(place, place + len(items))
    drawn = [item.latents[choose(len(item.latents), seed, epoch, at)] for item, at in zip(items, places, strict=True)]
    masks = [latent.mask for latent in drawn if latent.mask is not None]
    return {
        **({"mask": torch.stack(masks)} if masks else {}),
        "mean": torch.stack([latent.mean for latent in drawn]),
        "std": torch.stack([latent.std for latent in drawn]),
        "weights": torch.tensor([item.weight for item in items], dtype=torch.float32),
        "captions": [say(item.caption, item.wording, seed, epoch, at) for item, at in zip(items, places, strict=True)],
        "names": [item.path.name for item in items],
        "time_ids": torch.tensor([latent.sizes for latent in drawn], dtype=torch.float32),
        "epoch": epoch,
        "places": list(places),
    }


def batches_per_epoch(items: Sequence[Item], batch_size: int) -> int:
    """How many batches show every picture `repeats` times, and regularisation's share; short ones count."""
    return sum(-(-number // batch_size) for number in bucket_counts(items).values())


def batch_shapes(items: Sequence[Item], batch_size: int) -> Counter[tuple[int, ...]]:
    """[B,C,h,w] of a batch's `mean` -> batches of that shape in an epoch."""
    shapes: Counter[tuple[int, ...]] = Counter()
    for shape, number in Counter(item.shape for item in _shown(items)).items():
        full, rest = divmod(number, batch_size)
        shapes[batch_size, *shape] += full
        shapes[rest, *shape] += bool(rest)
    return shapes


def heaviest(items: Sequence[Item], batch_size: int) -> Batch:
    """The largest batch that an epoch may have, with the longest captions of its bucket, nothing drawn."""
    shapes = batch_shapes(items, batch_size)
    number, *shape = max((shape for shape, times in shapes.items() if times), key=math.prod)
    same = [item for item in items if list(item.shape) == shape]
    chosen = (sorted(same, key=lambda item: -len(item.caption)) * number)[:number]
    return {**batch_of(chosen, 0, 0, 0), "captions": [item.plain for item in chosen]}


def bucket_counts(items: Sequence[Item]) -> dict[Size, int]:
    """Bucket (width, height) -> pictures that an epoch shows in it, repeats included; in order of width."""
    return dict(sorted(Counter(item.bucket for item in _shown(items)).items()))


def report(items: Sequence[Item]) -> list[str]:
    """What a user should know of the set before it is trained on: how many of which shape, and what counts more."""
    trained, prior = parted(items)
    repeats = {item.repeats for item in trained}
    shown = f", shown {len(_shown(trained))} times an epoch" if len(repeats) > 1 else ""
    times = shown or (f", each {max(repeats)} times an epoch" if max(repeats) > 1 else "")
    lines = [f"{len(trained)}{times}: {_shapes(trained)}"]
    if prior:
        lines += _regularised(prior, _shown(items)[len(_shown(trained)) :])
    if weighed := [item for item in trained if item.weight != 1]:
        lines.append(f"{len(weighed)} of them count {_weights(weighed)} times in the loss")
    return lines


def _regularised(prior: Sequence[Item], shown: Sequence[Item]) -> list[str]:
    """`shown`: those of any one epoch."""
    counts = f"each counts {_weights(prior)} times in the loss"
    lines = [f"{len(prior)} of regularisation, {len(shown)} showings an epoch, {counts}: {_shapes(prior)}"]
    if rare := len([item for item in prior if item.bucket not in {item.bucket for item in shown}]):
        lines.append(f"{rare} of these never come up, as too few have their shape; cut them to that of the others")
    return lines


def _weights(items: Sequence[Item]) -> str:
    weights = [item.weight for item in items]
    return " to ".join(dict.fromkeys(f"{weight:g}" for weight in (min(weights), max(weights))))


def _shapes(items: Sequence[Item]) -> str:
    counts = Counter(item.bucket for item in items).most_common()
    named = [f"{number} of {width}x{height}" for (width, height), number in counts[:LISTED]]
    rest = counts[LISTED:]
    more = [f"{sum(number for _, number in rest)} of {len(rest)} other shapes"] if rest else []
    return ", ".join(named + more)
