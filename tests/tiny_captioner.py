"""A tiny CoCa in open_clip's own folder layout, random but always the same; its captions are nonsense."""

import json
from pathlib import Path

import numpy as np
import torch
from open_clip import CoCa
from PIL import Image
from safetensors.torch import save_file

WIDTH = 16
END = 49407
CONTEXT = 12
"""Ids a caption of this model has at most, start and end counted."""

MODEL = {
    "embed_dim": WIDTH,
    "vision_cfg": {
        "image_size": 32,
        "patch_size": 16,
        "width": WIDTH,
        "head_width": 8,
        "layers": 1,
        "attentional_pool": True,
        "attn_pooler_queries": 4,
        "attn_pooler_heads": 2,
        "output_tokens": True,
    },
    "text_cfg": {
        "context_length": CONTEXT,
        "vocab_size": 49408,
        "width": WIDTH,
        "heads": 2,
        "layers": 1,
        "embed_cls": True,
        "output_tokens": True,
    },
    "multimodal_cfg": {
        "context_length": CONTEXT,
        "vocab_size": 49408,
        "width": WIDTH,
        "heads": 2,
        "layers": 1,
        "attn_pooler_heads": 2,
    },
}


def save_tiny_captioner(folder: Path, preprocess: dict[str, str] | None = None) -> Path:
    """Write the model to `folder`. Different pictures get different captions, most of which come to an end."""
    model = CoCa(**MODEL)
    generator = torch.Generator().manual_seed(1)
    weights = {name: _random(name, like, generator) for name, like in model.state_dict().items()}
    # The id that ends a caption has to be likely enough to come up.
    weights["text_decoder.text_projection"][:, END] *= 2
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "open_clip_model.safetensors")
    config = {"model_cfg": {**MODEL, "custom_text": True}, "preprocess_cfg": preprocess or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def _random(name: str, like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Weights large enough that text depends on the picture and does not repeat one word for ever."""
    values = torch.randn(like.shape, generator=generator)
    if ".ln_" in name:
        return torch.ones_like(like) if name.endswith("weight") else torch.zeros_like(like)
    if "cross_attn" in name and "out_proj" in name:
        values *= 6
    if "visual.conv1" in name:
        values *= 2
    return values if "embedding" in name or like.ndim < 2 else values * like.shape[-1] ** -0.5


def picture(number: int) -> Image.Image:
    """One of many pictures that the model tells apart: plain colours and noise in turn."""
    random = np.random.default_rng(number)
    if number % 2:
        return Image.new("RGB", (20 + number, 30), tuple(random.integers(0, 256, 3).tolist()))
    return Image.fromarray(random.integers(0, 256, (30, 24 + number, 3), dtype=np.uint8))
