"""Real pipelines with a few thousand weights, in exactly the topology of the big ones; built anew at each call."""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from patina.clip import PLAIN
from patina.families.sd15 import SD15
from patina.family import narrow
from patina.lora import inject
from patina.tokenizer import clip_tokenizer

WIDTH = 32
"""Numbers per token that the tiny text encoder gives."""
RANK, ALPHA = 4, 2.0
CAPTIONS = ("a red house, oil painting", "")


def sd15(prediction_type: str = "epsilon", seed: int = 0) -> StableDiffusionPipeline:
    """Stable Diffusion 1.5, narrow; the same weights for the same seed, the global random state left alone."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return StableDiffusionPipeline(
            vae=_vae(),
            text_encoder=_clip(),
            tokenizer=clip_tokenizer(),
            unet=_unet(),
            scheduler=_scheduler(prediction_type),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def save_sd15(folder: Path) -> Path:
    """The tiny SD1.5 in diffusers' layout."""
    sd15().save_pretrained(folder)
    return folder


def adapted_sd15(
    pipe: StableDiffusionPipeline,
    choice: str | Sequence[str] = "full",
    components: Sequence[str] = ("unet", "text_encoder"),
    alpha: float = ALPHA,
) -> dict[str, torch.nn.Module]:
    """Adapt a pipeline's components with rank 4 and give B values, as training would; component -> module."""
    modules = {component: getattr(pipe, component) for component in components}
    generator = torch.Generator().manual_seed(1)
    for component, module in modules.items():
        inject.adapt(module, narrow(SD15, choice)[component], RANK, alpha, seed=0)
        for adapter in inject.adapters(module).values():
            torch.nn.init.normal_(adapter.B, std=0.1, generator=generator)
    return modules


@torch.no_grad()
def outputs_sd15(pipe: StableDiffusionPipeline) -> tuple[torch.Tensor, torch.Tensor]:
    """What the text encoder and, told by it, the UNet make of fixed inputs."""
    generator = torch.Generator().manual_seed(5)
    cond = SD15.encode(pipe, CAPTIONS, PLAIN)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    return cond["text"], SD15.predict(pipe, x, torch.tensor([10, 700]), cond)


def _unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(16, 32, 32, 32),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=8,
        cross_attention_dim=WIDTH,
        norm_num_groups=8,
    ).eval()


def _clip() -> CLIPTextModel:
    config = CLIPTextConfig(
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=12,
        num_attention_heads=4,
        vocab_size=49408,
        max_position_embeddings=77,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
    )
    return CLIPTextModel(config).eval()


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=512,
    ).eval()


def _scheduler(prediction_type: str) -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
