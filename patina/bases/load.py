"""Loading the base model that a run adapts: a diffusers folder, a model on the hub, or a single file."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from patina.bases import single
from patina.bases.find import HUB_ID, Base
from patina.bases.quantize import Quantize, quantize
from patina.errors import PatinaError
from patina.sampling import native_size

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline


def load_pipeline(
    base: Base,
    dtype: torch.dtype,
    device: torch.device,
    vae: str | None = None,
    layouts: Path = single.LAYOUTS,
    *,
    bits: Quantize = "none",
    waiting: Collection[str] = (),
) -> DiffusionPipeline:
    """The base in `dtype`, frozen and in eval mode, its autoencoder in fp32.

    `vae` takes the autoencoder from elsewhere. `layouts` holds the configs that single files are read by, a folder a
    family. `bits` are those of the denoiser's linear layers; components that are `waiting` stay off the device.
    Raises PatinaError when something is missing or does not fit.
    """
    if vae is None and not base.complete:
        raise PatinaError(
            f"base_model: {base.place} holds no VAE; name one, a folder or a single file: vae: PATH.safetensors"
        )
    layout = layouts / base.family.name
    swapped = None if vae is None else load_vae(vae, layout)
    pipe = single.load(base, dtype, layout, swapped) if base.kind == "file" else _pretrained(base, dtype, swapped)
    if base.scheduler:
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **base.scheduler)
    _check_latents(pipe, vae)
    pipe.set_progress_bar_config(disable=True)
    pipe.vae.float()
    quantize(getattr(pipe, base.family.denoiser), bits, dtype)
    for name in ("vae", base.family.denoiser, *base.family.text_encoders):
        part = getattr(pipe, name).requires_grad_(False).eval()
        if name not in waiting:
            part.to(device)
    return pipe


def size_note(pipe: DiffusionPipeline, resolution: int) -> str | None:
    """A line for who trains at half the base's own size or less, which a base draws badly."""
    side = max(native_size(pipe))
    if 2 * resolution > side:
        return None
    return (
        f"resolution: {resolution}, but this base was trained on {side} pixels; for its best write resolution: {side}"
    )


def load_vae(place: str, layout: Path) -> AutoencoderKL:
    """An autoencoder in fp32 from a diffusers folder, a name on the hub, or a single file in the layout's shape."""
    from diffusers import AutoencoderKL

    path = Path(place)
    if path.is_file() or not (path.is_dir() or HUB_ID.fullmatch(place)):
        return single.load_vae(path, layout)
    inner = {"subfolder": "vae"} if (path / "vae").is_dir() else {}
    with _explained(f"vae: {place}", "an autoencoder"):
        return AutoencoderKL.from_pretrained(
            place, local_files_only=path.is_dir(), use_safetensors=True, **inner
        ).float()


def _pretrained(base: Base, dtype: torch.dtype, vae: AutoencoderKL | None) -> DiffusionPipeline:
    import diffusers

    kind = getattr(diffusers, base.family.pipeline)
    parts = {} if vae is None else {"vae": vae}
    kept = {"vae": torch.float32, "default": dtype}
    with _explained(f"base_model: {base.place}", "a whole diffusers model"):
        return kind.from_pretrained(
            base.place,
            dtype=kept,
            local_files_only=base.kind == "folder",
            use_safetensors=True,
            **base.family.pipeline_options,
            **parts,
        )


@contextmanager
def _explained(place: str, what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise PatinaError(f"{place} cannot be loaded ({reason}); is it {what}?") from error


def _check_latents(pipe: DiffusionPipeline, vae: str | None) -> None:
    made, taken = pipe.vae.config.latent_channels, pipe.unet.config.in_channels
    if made != taken:
        raise PatinaError(f"vae: {vae} makes {made} channels, and this base takes {taken}; name a VAE of its family")
