"""Base models with random weights in the published shapes: what a step costs does not depend on what they know."""

# diffusers and transformers annotate what they take and give more narrowly than they are: not ours to mend.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import nn

from patina.bases.single import LAYOUTS
from patina.family import Family

TOKENIZER = Path(__file__).resolve().parents[2] / "data" / "demo" / "base" / "tokenizer"
"""CLIP's own, as every one of the families has it but for what it pads with."""
VAE = {"block_out_channels": (8, 8, 16, 16), "layers_per_block": 1, "norm_num_groups": 8}
CLIP = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "projection_dim": 32}
UNET = {"block_out_channels": (16, 32, 32, 32), "cross_attention_dim": 32, "norm_num_groups": 8}
NARROW: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "sd15": {"vae": VAE, "text_encoder": CLIP, "unet": UNET},
    "sd2": {"vae": VAE, "text_encoder": CLIP, "unet": {**UNET, "attention_head_dim": (2, 4, 4, 4)}},
    "sdxl": {
        "vae": VAE,
        "text_encoder": CLIP,
        "text_encoder_2": CLIP,
        "unet": {
            **UNET,
            "block_out_channels": (16, 32, 32),
            "attention_head_dim": (2, 4, 4),
            "cross_attention_dim": 64,
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 32 + 6 * 8,
        },
    },
}
"""Family -> component -> entries of its config that make it a thousandth of its size, with the same layers."""


def make_base(family: Family, folder: Path, device: torch.device, *, narrow: bool) -> None:
    """Draw a whole model on the device and save it in diffusers' layout, fp16, as downloaded ones are."""
    pipe = empty_pipeline(family, narrow=narrow)
    generator = torch.Generator(device).manual_seed(0)
    for name in ("vae", family.denoiser, *family.text_encoders):
        module = getattr(pipe, name).half().to_empty(device=device)
        _draw(module, generator)
    pipe.save_pretrained(folder)


def empty_pipeline(family: Family, *, narrow: bool) -> DiffusionPipeline:
    """The family's pipeline on torch's meta device: shapes, and no numbers."""
    layout, changed = LAYOUTS / family.name, NARROW[family.name] if narrow else {}
    index = json.loads((layout / "model_index.json").read_text(encoding="utf-8"))
    kinds = {name: kind for name, kind in index.items() if isinstance(kind, list)}
    parts = {name: _part(layout / name, kind, changed.get(name, {})) for name, kind in kinds.items()}
    return getattr(diffusers, family.pipeline)(**parts, **family.pipeline_options)


def _part(folder: Path, made_by: Sequence[str], changed: Mapping[str, Any]) -> Any:
    """A tokenizer or a scheduler is itself; a model is on the meta device."""
    library, kind = made_by
    if kind == "CLIPTokenizer":
        pad = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["pad_token"]
        return transformers.CLIPTokenizer.from_pretrained(TOKENIZER, pad_token=pad)
    made = getattr(diffusers if library == "diffusers" else transformers, kind)
    if (folder / "scheduler_config.json").is_file():
        return made.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | dict(changed)
    with torch.device("meta"):
        model = made.from_config(config) if library == "diffusers" else made(transformers.CLIPTextConfig(**config))
    return model.eval()


@torch.no_grad()
def _draw(module: nn.Module, generator: torch.Generator) -> None:
    """Weights that keep numbers at their size from layer to layer, so that nothing overflows in fp16."""
    for name, weight in module.named_parameters():
        if weight.dim() > 1:
            weight.normal_(std=weight[0].numel() ** -0.5, generator=generator)
        else:
            weight.fill_(1.0 if name.endswith("weight") else 0.0)
