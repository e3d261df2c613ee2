"""The latent cache: each picture is encoded once, as mean and spread, so that every epoch can sample it afresh."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from patina.data.ahead import ahead
from patina.data.buckets import Buckets, Fit, Size, fit
from patina.data.entries import fingerprint_of, place, write
from patina.data.images import ImageError, open_image
from patina.data.shards import Shards, pack
from patina.data.variants import PLAIN, Variant, cut
from patina.errors import PatinaError

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

FORMAT = 1
"""Part of every key; one more whenever an entry of the same picture would come out differently."""
UNWRITTEN = 8
"""Entries that may wait for the disk; as many are made anew where a run is killed."""
LISTED = 20
"""Unreadable pictures that a message names; a folder of thousands would otherwise scroll the reason away."""

R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class Encoded:
    """A picture as the autoencoder sees it. A latent is `mean + std * noise`, on the scale that the denoiser takes."""

    mean: Tensor
    """[C,h,w] fp32, on the CPU."""
    std: Tensor
    """[C,h,w] fp32, on the CPU. In fp16 much of it would be too small to hold."""
    fit: Fit
    """Of the middle cut, whichever the variant's is."""
    size: Size
    """Of the upright picture before it was cut."""


class View(NamedTuple):
    """A variant of the picture in a file."""

    path: Path
    variant: Variant = PLAIN


def fingerprint(vae: AutoencoderKL) -> str:
    """A digest of the autoencoder's config (its scaling factor included) and of every bit of its weights."""
    return fingerprint_of(vae.config, vae.state_dict())


def key_of(picture: bytes, buckets: Buckets, encoder: str, variant: Variant = PLAIN) -> str:
    """The name of a cache entry: a digest of the picture file's content, the buckets, the encoder's fingerprint and, of
    a picture that is not shown as it is, the variant.

    With the buckets it holds all that decides the cut, yet can be told without decoding the picture.
    """
    # a picture that is only mirrored has the key that it had when there was nothing else
    told = variant[:1] if variant[1:] == PLAIN[1:] else variant
    changed = [] if variant == PLAIN else [told]
    # what small pictures are not enlarged to says nothing of the others, which keep the key that they had before
    shapes = [*buckets.sizes, "upscale"] if buckets.upscale else buckets.sizes
    rest = json.dumps([FORMAT, shapes, encoder, hashlib.sha256(picture).hexdigest(), *changed])
    return hashlib.sha256(rest.encode()).hexdigest()


def encode_all(
    views: Sequence[View], vae: AutoencoderKL, buckets: Buckets, folder: Path, workers: int
) -> list[Encoded]:
    """Every view encoded, in their order: taken from the cache in `folder`, or made and put there.

    The autoencoder runs where it is and in the numbers it has. Processes may share the folder, at the same time too.
    Raises PatinaError that lists all the pictures that cannot be read, or names one that the autoencoder fails on.
    """
    encoder, kept = fingerprint(vae), Shards(folder)
    reasons: dict[Path, str] = {}

    def look(view: View) -> tuple[str, Encoded | None]:
        key = key_of(content(view.path), buckets, encoder, view.variant)
        return key, _opened(kept.read(key), buckets)

    found = dict(_readable(look, dict.fromkeys(views), workers, reasons))
    missing = {view: key for view, (key, entry) in found.items() if entry is None}
    made = _make(missing, vae, buckets, folder, workers, reasons) if missing else {}
    if reasons:
        raise PatinaError(_unreadable(reasons, len({view.path for view in views})))
    if made:
        pack(folder)
    return [found[view][1] or made[view] for view in views]


def _make(
    missing: dict[View, str],
    vae: AutoencoderKL,
    buckets: Buckets,
    folder: Path,
    workers: int,
    reasons: dict[Path, str],
) -> dict[View, Encoded]:
    """Encode what is missing and keep it: later pictures are being read meanwhile, and earlier ones written.

    Once a picture is unreadable the others are only read, to list all such.
    """

    def cut_out(view: View) -> tuple[Size, Fit, np.ndarray]:
        image = open_image(view.path)
        how = fit(image.size, buckets)
        return image.size, how, cut(image, how, view.variant)

    def encoded() -> Iterator[tuple[View, Encoded]]:
        for view, (size, how, pixels) in _readable(cut_out, missing, workers, reasons):
            if not reasons:
                yield view, Encoded(*_encode(vae, pixels, view.path), how, size)
            bar.update()

    def keep(made: tuple[View, Encoded]) -> None:
        view, entry = made
        _write(place(folder, missing[view]), entry)

    made = {}
    with (
        tqdm(total=len(missing), desc="caching latents", unit="image", disable=None) as bar,
        # one thread, as two pictures may have one entry
        closing(ahead(keep, encoded(), workers=1, depth=UNWRITTEN)) as stream,
    ):
        for (view, entry), written in stream:
            written.result()
            made[view] = entry
    return made


def _readable(
    work: Callable[[View], R], views: Iterable[View], workers: int, reasons: dict[Path, str]
) -> Iterator[tuple[View, R]]:
    """What `work` makes of each view, done ahead in threads; where it raises ImageError, the sentence is kept."""
    with closing(ahead(work, views, workers, depth=2 * workers)) as stream:
        for view, future in stream:
            try:
                result = future.result()
            except ImageError as error:
                reasons[view.path] = str(error)
                continue
            yield view, result


def content(path: Path) -> bytes:
    """All bytes of a file. Raises ImageError where it cannot be opened."""
    try:
        return path.read_bytes()
    except OSError as error:
        reason = f"cannot be opened ({error.strerror}); check its name and permissions"
        raise ImageError(f"{path}: {reason}") from error


def _unreadable(reasons: dict[Path, str], total: int) -> str:
    lines = list(reasons.values())
    more = [f"... and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
    return "\n  ".join([f"{len(lines)} of {total} pictures cannot be used:", *lines[:LISTED], *more])


@torch.no_grad()
def _encode(vae: AutoencoderKL, pixels: np.ndarray, path: Path) -> tuple[Tensor, Tensor]:
    """8-bit pixels [H,W,3] -> mean and std, [C,h,w]. One picture at a time, so that an entry is a function of its key:
    in a batch the last bits would depend on the neighbours, and a resumed run on what was cached before."""
    assert not vae.training
    first = next(vae.parameters())  # to say its dtype diffusers looks at every layer, which takes milliseconds
    x = torch.from_numpy(pixels).to(first.device, first.dtype).permute(2, 0, 1)[None] / 127.5 - 1
    spread = vae.encode(x, return_dict=False)[0]
    scale, shift = vae.config["scaling_factor"], vae.config["shift_factor"] or 0.0
    mean = (spread.mean[0].float().cpu() - shift) * scale
    std = spread.std[0].float().cpu() * scale
    if not (mean.isfinite().all() and std.isfinite().all()):
        raise PatinaError(
            f"{path}: the base model's autoencoder makes numbers of this picture that are not finite; "
            "leave it out if others work, or else download the base model again"
        )
    return mean, std


def _write(path: Path, entry: Encoded) -> None:
    tensors = {
        "mean": entry.mean.contiguous(),
        "std": entry.std.contiguous(),
        "size": torch.tensor(entry.size),
        "cut": _numbers(entry.fit),
    }
    write(path, tensors)


def _opened(tensors: dict[str, Tensor] | None, buckets: Buckets) -> Encoded | None:
    """The entry; None where there is none, or where its picture would now be cut otherwise."""
    if tensors is None:
        return None
    width, height = tensors["size"].tolist()
    how = fit((width, height), buckets)
    same = torch.equal(tensors["cut"], _numbers(how))
    return Encoded(tensors["mean"], tensors["std"], how, (width, height)) if same else None


def _numbers(how: Fit) -> Tensor:
    return torch.tensor([*how.bucket, *how.box], dtype=torch.float64)
