"""Real pipelines with a few thousand weights, in exactly the topology of the big ones; built anew at each call."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from patina.clip import PLAIN
from patina.families import FAMILIES
from patina.family import Family, narrow
from patina.lora import inject
from patina.tokenizer import clip_tokenizer

WIDTH, WIDTH_2 = 32, 48
"""Numbers per token that the tiny text encoders give; SDXL's two are told apart by them, as the big ones are."""
RANK, ALPHA = 4, 2.0
CAPTIONS = ("a red house, oil painting", "")

Pipeline = StableDiffusionPipeline | StableDiffusionXLPipeline


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


def sd2(prediction_type: str = "v_prediction", seed: int = 0) -> StableDiffusionPipeline:
    """Stable Diffusion 2.1, narrow: linear projections, a text encoder of 23 layers with another activation."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return StableDiffusionPipeline(
            vae=_vae(),
            text_encoder=_clip(layers=23, act="gelu"),
            tokenizer=clip_tokenizer("!"),
            unet=_unet(use_linear_projection=True, attention_head_dim=(2, 4, 4, 4), sample_size=96),
            scheduler=_scheduler(prediction_type),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def sdxl(prediction_type: str = "epsilon", seed: int = 0) -> StableDiffusionXLPipeline:
    """Stable Diffusion XL, narrow: 1, 2 and 10 transformer layers a block, text encoders of 12 and 32 layers."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return StableDiffusionXLPipeline(
            vae=_vae(scaling_factor=0.13025),
            text_encoder=_clip(),
            text_encoder_2=_clip(WIDTH_2, layers=32, act="gelu", projected=True),
            tokenizer=clip_tokenizer(),
            tokenizer_2=clip_tokenizer("!"),
            unet=_unet_xl(),
            scheduler=_scheduler(prediction_type),
            add_watermarker=False,
        )


PIPELINES: Mapping[str, Callable[..., Pipeline]] = {"sd15": sd15, "sd2": sd2, "sdxl": sdxl}
"""A builder for each family, by its name."""
assert PIPELINES.keys() == FAMILIES.keys()


def save_sd15(folder: Path) -> Path:
    """The tiny SD1.5 in diffusers' layout."""
    sd15().save_pretrained(folder)
    return folder


def adapted(
    family: Family,
    pipe: Pipeline,
    choice: str | Sequence[str] = "full",
    components: Sequence[str] | None = None,
    alpha: float = ALPHA,
) -> dict[str, torch.nn.Module]:
    """Adapt a pipeline's components (None: all) with rank 4 and give B values, as training would; name -> module."""
    modules = {component: getattr(pipe, component) for component in components or family.targets}
    generator = torch.Generator().manual_seed(1)
    for component, module in modules.items():
        inject.adapt(module, narrow(family, choice)[component], RANK, alpha, seed=0)
        for adapter in inject.adapters(module).values():
            torch.nn.init.normal_(adapter.B, std=0.1, generator=generator)
    return modules


@torch.no_grad()
def outputs(family: Family, pipe: Pipeline) -> tuple[torch.Tensor, torch.Tensor]:
    """What the text encoders and, told by them, the UNet make of fixed inputs."""
    generator = torch.Generator().manual_seed(5)
    cond = family.encode(pipe, CAPTIONS, PLAIN)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    return cond["text"], family.predict(pipe, x, torch.tensor([10, 700]), cond)


def _unet(**facts) -> UNet2DConditionModel:
    ours = dict(
        sample_size=64,
        block_out_channels=(16, 32, 32, 32),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=8,
        cross_attention_dim=WIDTH,
        norm_num_groups=8,
    )
    return UNet2DConditionModel(**(ours | facts)).eval()


def _unet_xl() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(16, 32, 32),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(2, 4, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=WIDTH_2 + 6 * 8,
        cross_attention_dim=WIDTH + WIDTH_2,
        norm_num_groups=8,
    ).eval()


def _clip(width: int = WIDTH, layers: int = 12, act: str = "quick_gelu", projected: bool = False):
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        hidden_act=act,
        projection_dim=width,
        vocab_size=49408,
        max_position_embeddings=77,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def _vae(scaling_factor: float = 0.18215) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=512,
        scaling_factor=scaling_factor,
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
