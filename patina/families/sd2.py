"""Stable Diffusion 2.x: the UNet of 1.x with linear projections, told what to draw by OpenCLIP; epsilon or velocity."""

from dataclasses import replace

from patina.families.sd15 import SD15
from patina.objective import EPSILON, VELOCITY

# Reading captions, predicting, and the names of layers are those of 1.x. The text encoder is stored without its last
# layer, so that its last output is the penultimate one that the base was trained with.
SD2 = replace(
    SD15,
    name="sd2",
    told_by={"use_linear_projection": True},
    resolution=768,
    predicts={VELOCITY: 768, EPSILON: 512},
    metadata={
        "ss_v2": "True",
        "ss_base_model_version": "sd_v2",
        "modelspec.architecture": "stable-diffusion-v2-512/lora",
        "modelspec.implementation": "diffusers",
    },
    velocity_metadata={
        "ss_base_model_version": "sd_v2_v",
        "modelspec.architecture": "stable-diffusion-v2-768-v/lora",
    },
    webui_version="SD2",
)
