"""Stable Diffusion XL: two text encoders, a pooled caption, and each picture's size and crop as conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from patina.clip import Reading, penultimate, read
from patina.families.sd15 import CLIP_ATTENTION, CONVOLUTIONS, SD15
from patina.family import Family
from patina.lora.blocks import sdxl_ldm
from patina.objective import EPSILON, ddpm

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from torch import Tensor


SECOND = "_2"
"""Ends the names of what is for the second text encoder."""


def tokens(pipe: DiffusionPipeline, captions: Sequence[str], reading: Reading) -> dict[str, Tensor]:
    """Captions -> {"ids": [B,n,77]}, and `weights` where they are weighed; the second encoder's with `_2` behind."""
    second = {f"{name}{SECOND}": part for name, part in read(pipe.tokenizer_2, captions, reading).items()}
    return read(pipe.tokenizer, captions, reading) | second


def listen(pipe: DiffusionPipeline, said: Mapping[str, Tensor], reading: Reading) -> dict[str, Tensor]:
    """What `tokens` gave -> {"text": [B,77n,W1+W2], "pooled": [B,W2]}, the encoders' last layers but one together."""
    first, _ = penultimate(pipe.text_encoder, said, reading)
    theirs = {name.removesuffix(SECOND): part for name, part in said.items() if name.endswith(SECOND)}
    second, pooled = penultimate(pipe.text_encoder_2, theirs, reading)
    assert pooled is not None
    return {"text": torch.cat([first, second], dim=-1), "pooled": pooled}


def predict(pipe: DiffusionPipeline, x: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
    """Noisy latents [B,4,h,w], timesteps [B] and `listen`'s output -> what the UNet predicts, [B,4,h,w].

    `cond["time_ids"]` [B,6], where it is there, is each picture's height and width before it was cut, how many pixels
    were cut off at the top and at the left, and height and width now (Podell et al., arXiv:2307.01952, section 2.2).
    """
    time_ids = cond["time_ids"] if "time_ids" in cond else _uncut(pipe, x)
    added = {"text_embeds": cond["pooled"], "time_ids": time_ids.to(x.device)}
    return pipe.unet(x, t, encoder_hidden_states=cond["text"], added_cond_kwargs=added, return_dict=False)[0]


def _uncut(pipe: DiffusionPipeline, x: Tensor) -> Tensor:
    """[B,6] fp32, because fp16 holds no odd number above 2048: pictures that were the latents' size from the start."""
    height, width = (side * pipe.vae_scale_factor for side in x.shape[-2:])
    return torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32).expand(len(x), -1)


SDXL = Family(
    name="sdxl",
    pipeline="StableDiffusionXLPipeline",
    denoiser="unet",
    text_encoders=("text_encoder", "text_encoder_2"),
    pipeline_options={"add_watermarker": False},
    told_by={"addition_embed_type": "text_time"},
    resolution=1024,
    predicts={EPSILON: 1024},
    objective=ddpm,
    targets={
        "unet": SD15.targets["unet"],
        "text_encoder": SD15.targets["text_encoder"],
        "text_encoder_2": SD15.targets["text_encoder"],
    },
    convolutions={"unet": CONVOLUTIONS},
    # transformers 5.6 took the `text_model` level out of CLIPTextModel and left it in CLIPTextModelWithProjection
    prefix={"unet": "lora_unet_", "text_encoder": "lora_te1_text_model_", "text_encoder_2": "lora_te2_"},
    spelling={"unet": sdxl_ldm},
    together={"text_encoder": CLIP_ATTENTION, "text_encoder_2": CLIP_ATTENTION},
    metadata={
        "ss_v2": "False",
        "ss_base_model_version": "sdxl_base_v1-0",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
    },
    velocity_metadata={},
    webui_version="SDXL",
    trains_text=False,
    tokens=tokens,
    listen=listen,
    predict=predict,
)
