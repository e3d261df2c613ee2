"""What a single file is, seen from its header alone: names and shapes of its tensors, and its metadata."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from patina.objective import EPSILON, VELOCITY
from patina.safeheader import Header

UNET, AUTOENCODER = "model.diffusion_model.", "first_stage_model."
IN = f"{UNET}input_blocks.0.0.weight"
LORA = (
    ".lora_down.weight",
    ".lora_up.weight",
    ".lora_A.weight",
    ".lora_B.weight",
    ".hada_w1_a",
    ".lokr_w1",
    ".lokr_w1_a",
)
V_PRED, ZERO_SNR = "v_pred", "ztsnr"
"""Empty tensors by which a file says that it predicts velocity, and that its last timestep has no signal."""
SPOKEN = {"epsilon": EPSILON, "eps": EPSILON, "v": VELOCITY, "v_prediction": VELOCITY}
"""Words for what a model predicts, in modelspec's metadata."""

Names = Mapping[str, tuple[int, ...]]
"""Tensor -> shape."""


class Sign(NamedTuple):
    """One kind of file that is no base for us."""

    what: str
    """Completes `FILE is ...`."""
    seen: Callable[[Names], bool]


def _starts(*prefixes: str) -> Callable[[Names], bool]:
    return lambda names: any(name.startswith(prefixes) for name in names)


def _ends(*suffixes: str) -> Callable[[Names], bool]:
    return lambda names: any(name.endswith(suffixes) for name in names)


def _takes(channels: int) -> Callable[[Names], bool]:
    return lambda names: IN in names and names[IN][1] == channels


REFUSED = (
    Sign("a LoRA and no base model: name the checkpoint that it was made for", _ends(*LORA)),
    Sign("a ControlNet, which cannot be trained here", _starts("control_model.", "controlnet_", "input_hint_block.")),
    Sign("a textual inversion and no base model", lambda names: not names.keys().isdisjoint(("emb_params", "clip_l"))),
    Sign(
        "a FLUX model, which cannot be trained here",
        _starts("double_blocks.0.", f"{UNET}double_blocks.0.", f"{UNET}single_blocks.0.", "single_blocks.0."),
    ),
    Sign(
        "a Stable Diffusion 3 model, which cannot be trained here",
        _starts("joint_blocks.0.", f"{UNET}joint_blocks.0."),
    ),
    Sign("one part of a diffusers folder: give the whole folder", _starts("down_blocks.0.", "text_model.encoder.")),
    Sign("an inpainting model, whose UNet takes 9 channels: give the model that it was made from", _takes(9)),
    Sign("a model that edits pictures by instruction, whose UNet takes 8 channels", _takes(8)),
    Sign(
        "a Stable Diffusion model of a kind that cannot be trained here: its UNet does not take 4 channels",
        lambda names: IN in names and names[IN][1] != 4,
    ),
    Sign(
        "the SDXL refiner: give the SDXL base",
        lambda names: (
            f"{UNET}label_emb.0.0.weight" in names
            and f"{UNET}output_blocks.11.0.in_layers.0.weight" in names
            and f"{UNET}input_blocks.1.1.norm.weight" not in names
        ),
    ),
    Sign(
        "a Stable Diffusion 2 that listens to pictures (unCLIP), which cannot be trained here",
        lambda names: f"{UNET}label_emb.0.0.weight" in names and f"{UNET}input_blocks.1.1.norm.weight" in names,
    ),
    Sign(
        "an autoencoder alone: give it as vae: and a checkpoint as base_model:",
        lambda names: IN not in names and _starts("encoder.down.0.", AUTOENCODER, "encoder.down_blocks.0.")(names),
    ),
    Sign("a UNet without the rest: give the whole checkpoint", _starts("input_blocks.0.0.")),
    Sign("no Stable Diffusion checkpoint that is known here", lambda names: IN not in names),
    Sign(
        "a UNet without text encoders: give a checkpoint that holds them",
        lambda names: not _starts("cond_stage_model.", "conditioner.embedders.0.")(names),
    ),
)
"""In the order they are looked for; what matches none is a base of a known family."""


def refusal(names: Names) -> str | None:
    """What a file is, if it is no base that can be trained here."""
    return next((sign.what for sign in REFUSED if sign.seen(names)), None)


def family_of(names: Names) -> str:
    """The family of a file that is not refused.

    Told by its topology and not by widths: SDXL is conditioned on sizes, 2.x projects by matrices, 1.x by convolutions.
    """
    if f"{UNET}label_emb.0.0.weight" in names:
        return "sdxl"
    projection = names.get(f"{UNET}input_blocks.1.1.proj_in.weight", ())
    return "sd2" if len(projection) == 2 else "sd15"


def has_autoencoder(names: Names) -> bool:
    """Whether the file can encode pictures."""
    return f"{AUTOENCODER}encoder.conv_in.weight" in names


def spoken_prediction(header: Header) -> tuple[str, str] | None:
    """What the file says that it predicts, and where it says so; None if it is silent."""
    if V_PRED in header.tensors:
        return VELOCITY, f"it holds the tensor {V_PRED}"
    word = header.metadata.get("modelspec.prediction_type", "").lower()
    return (SPOKEN[word], "its metadata say so") if word in SPOKEN else None
