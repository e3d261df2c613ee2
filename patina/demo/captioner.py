"""The embedded captioner: a small open_clip CoCa that names what is in a picture of any style, never the style."""

import json
from collections.abc import Sequence
from pathlib import Path

import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from patina.demo.fit import Round, fit, in_bfloat16
from patina.demo.pictures import SIDE, gallery, to_tensor
from patina.demo.styles import STYLES

WIDTH, CONTEXT = 48, 48
CONTRASTIVE = 0.2
"""Weight of the contrastive loss beside the caption's (CoCa, Yu et al. 2022, has 1 to 2)."""
SHAPE = {
    "embed_dim": WIDTH,
    "custom_text": True,
    "vision_cfg": {
        "image_size": SIDE,
        "patch_size": 8,
        "layers": 6,
        "width": 128,
        "head_width": 32,
        "attentional_pool": True,
        "attn_pooler_heads": 4,
        "output_tokens": True,
    },
    "text_cfg": {
        "context_length": CONTEXT,
        "vocab_size": 49408,
        "width": WIDTH,
        "heads": 4,
        "layers": 3,
        "embed_cls": True,
        "output_tokens": True,
    },
    "multimodal_cfg": {
        "context_length": CONTEXT,
        "vocab_size": 49408,
        "width": WIDTH,
        "heads": 4,
        "layers": 4,
        "attn_pooler_heads": 4,
    },
}
PREPROCESS = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}


def teach(work: Path, out: Path, device: torch.device, rounds: Sequence[Round]) -> None:
    """Train on scenes in every style and save to `out` in open_clip's own layout, fp16."""
    torch.manual_seed(0)
    model = build().to(device).train()
    for plan in rounds:
        learn(model, plan, work, device)
    save(model, out)


def build() -> open_clip.CoCa:
    """The model of SHAPE, untrained."""
    return open_clip.CoCa(**{key: value for key, value in SHAPE.items() if key != "custom_text"})


def learn(model: open_clip.CoCa, plan: Round, work: Path, device: torch.device) -> None:
    """One round of writing captions and matching them with pictures."""
    read = in_bfloat16(model)
    drawn, stored = gallery(plan.scenes, plan.seed, tuple(STYLES), work)
    pixels = torch.from_numpy(stored.copy()).to(device)
    ids = SimpleTokenizer(context_length=CONTEXT)([scene.caption() for scene in drawn]).to(device)
    matched = torch.arange(plan.batch, device=device)

    def loss() -> Tensor:
        picked = torch.randint(len(pixels), (plan.batch,), device=device)
        # The gallery holds the scenes style by style.
        other = (picked + plan.scenes * torch.randint(len(STYLES), (plan.batch,), device=device)) % len(pixels)
        seen = read(_disturbed(to_tensor(pixels[picked]), to_tensor(pixels[other])).bfloat16(), ids[picked])
        caption = F.cross_entropy(seen["logits"].float().flatten(0, 1), seen["labels"].flatten(), ignore_index=0)
        pairs = seen["logit_scale"] * seen["image_features"].float() @ seen["text_features"].float().T
        return caption + CONTRASTIVE * (F.cross_entropy(pairs, matched) + F.cross_entropy(pairs.T, matched)) / 2

    fit(loss, [model], plan, name="captioner")


def save(model: open_clip.CoCa, out: Path) -> None:
    """Save config and weights as open_clip reads them from a folder."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, out / "open_clip_model.safetensors")
    (out / "open_clip_config.json").write_text(json.dumps({"model_cfg": SHAPE, "preprocess_cfg": PREPROCESS}, indent=1))


def _disturbed(x: Tensor, other: Tensor) -> Tensor:
    """Pictures such as a generator draws: one style turning into another in places, blurred and noisy, by chance.

    `other` is the same scenes as `x`, [B, 3, H, W] from -1 to 1, in other styles.
    """
    patches = torch.randn(len(x), 1, 4, 4, device=x.device) * 2 + torch.randn(len(x), 1, 1, 1, device=x.device) * 3
    x = torch.lerp(x, other, F.interpolate(patches, x.shape[-2:], mode="bilinear").sub(2).sigmoid())
    for side in (2, 4):
        blurred = F.interpolate(F.avg_pool2d(x, side), scale_factor=float(side), mode="bilinear")
        x = torch.lerp(x, blurred, torch.rand(len(x), 1, 1, 1, device=x.device) ** (side - 1))
    return x + 0.12 * torch.rand(len(x), 1, 1, 1, device=x.device) * torch.randn_like(x)
