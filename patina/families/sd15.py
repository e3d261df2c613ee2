"""Stable Diffusion 1.x: a UNet that predicts noise, told what to draw by one CLIP text encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from patina.clip import Reading, hidden_states, read
from patina.family import FULL, Family
from patina.objective import EPSILON, ddpm

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from torch import Tensor

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv")
CLIP_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
CLIP_MLP = ("mlp.fc1", "mlp.fc2")


def tokens(pipe: DiffusionPipeline, captions: Sequence[str], reading: Reading) -> dict[str, Tensor]:
    """Captions -> {"ids": [B,n,77]}, and `weights` where they are weighed."""
    return read(pipe.tokenizer, captions, reading)


def listen(pipe: DiffusionPipeline, said: Mapping[str, Tensor], reading: Reading) -> dict[str, Tensor]:
    """What `tokens` gave -> {"text": [B,77n,W]}."""
    return {"text": hidden_states(pipe.text_encoder, said, reading)}


def predict(pipe: DiffusionPipeline, x: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
    """Noisy latents [B,4,h,w], timesteps [B] and `listen`'s output -> what the UNet predicts, [B,4,h,w]."""
    return pipe.unet(x, t, encoder_hidden_states=cond["text"], return_dict=False)[0]


SD15 = Family(
    name="sd15",
    pipeline="StableDiffusionPipeline",
    denoiser="unet",
    text_encoders=("text_encoder",),
    pipeline_options={
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    },
    told_by={"use_linear_projection": False},
    resolution=512,
    predicts={EPSILON: 512},
    objective=ddpm,
    targets={
        "unet": {
            # proj_in and proj_out are 1x1 convolutions here; no layer outside the attention blocks has these names
            FULL: (*ATTENTION, *FEED_FORWARD, "proj_in", "proj_out"),
            "attn": ATTENTION,
            "attn-mlp": (*ATTENTION, *FEED_FORWARD),
        },
        "text_encoder": {
            FULL: (*CLIP_ATTENTION, *CLIP_MLP),
            "attn": CLIP_ATTENTION,
            "attn-mlp": (*CLIP_ATTENTION, *CLIP_MLP),
        },
    },
    convolutions={"unet": CONVOLUTIONS},
    # transformers 5.6 took the `text_model` level out of CLIPTextModel; the readers of LoRA files still expect it
    prefix={"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"},
    spelling={},
    together={"text_encoder": CLIP_ATTENTION},
    metadata={
        "ss_v2": "False",
        "ss_base_model_version": "sd_v1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
    },
    velocity_metadata={"ss_base_model_version": "sd_v1_v"},
    webui_version="SD1",
    trains_text=True,
    tokens=tokens,
    listen=listen,
    predict=predict,
)
