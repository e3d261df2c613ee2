"""How far apart two sets of pictures are in style, whatever they show."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image, ImageOps
from torch import Tensor

from patina.demo.pictures import SIDE, to_tensor
from patina.demo.styles import draw
from patina.demo.world import scenes

LEVELS = 3
"""Of the encoder, the finest first: strokes, textures and light; the deeper ones know more of what is shown."""
PLAIN, SEED = 64, 90101


@dataclass(frozen=True)
class Ruler:
    """Measures style by the means and deviations of an encoder's channels over the picture.

    Where in the picture something is drops out of these statistics, and they are what a style is made of for Gatys
    et al. (2016) and Huang and Belongie (2017). The autoencoder's encoder serves: it has seen pictures of every style.
    """

    vae: AutoencoderKL
    centre: Tensor
    spread: Tensor
    """Mean and standard deviation of the statistics over plain pictures, [D]: the unit in which distances are."""

    def embed(self, images: Sequence[Image.Image]) -> Tensor:
        """The statistics of pictures of any size, in units of their spread over plain ones: [N, D]."""
        return (_statistics(self.vae, images) - self.centre) / self.spread


def ruler(vae: AutoencoderKL) -> tuple[Ruler, Tensor]:
    """A ruler and the plain pictures as it sees them, [PLAIN, D]."""
    known = _statistics(vae, [draw(scene, "plain", (SIDE, SIDE)) for scene in scenes(PLAIN, SEED)])
    made = Ruler(vae, known.mean(0), known.std(0))
    return made, (known - made.centre) / made.spread


def distance(ones: Tensor, others: Tensor) -> float:
    """Between two sets of embedded pictures [N, D] and [M, D]: about 0 for one style, 1 and more for far ones.

    The distance of their means per dimension, less what the sets' differing contents alone lead one to expect:
    without that, small sets of one style would seem far apart.
    """
    apart = (ones.mean(0) - others.mean(0)).square().sum()
    chance = ones.var(0).sum() / len(ones) + others.var(0).sum() / len(others)
    return ((apart - chance).clamp(min=0) / ones.shape[1]).sqrt().item()


@torch.no_grad()
def _statistics(vae: AutoencoderKL, images: Sequence[Image.Image], batch: int = 32) -> Tensor:
    squares = np.stack([np.asarray(ImageOps.fit(image.convert("RGB"), (SIDE, SIDE))) for image in images])
    parts = to_tensor(squares).to(vae.device, vae.dtype).split(batch)
    return torch.cat([_channel_statistics(vae, part) for part in parts])


def _channel_statistics(vae: AutoencoderKL, x: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] to mean and deviation of every channel of the first LEVELS levels, [B, D]."""
    found, x = [], vae.encoder.conv_in(x)
    for block in vae.encoder.down_blocks[:LEVELS]:
        x = block(x)
        found += [x.mean(dim=(2, 3)), x.std(dim=(2, 3))]
    return torch.cat(found, dim=1).float()
