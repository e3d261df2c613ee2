"""The embedded autoencoder: pictures to latents an eighth as wide, for every style of the world."""

# diffusers and transformers annotate one-tuples and dicts where they take and give more: not ours to mend.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F

from patina.demo.fit import Round, fit, in_bfloat16
from patina.demo.pictures import SIDE, gallery, to_tensor
from patina.demo.styles import STYLES

KL_WEIGHT = 1e-4


def build() -> AutoencoderKL:
    """SD1.5's autoencoder, a quarter as wide or less."""
    return AutoencoderKL(
        block_out_channels=(32, 48, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIDE,
    )


def teach(work: Path, out: Path, device: torch.device, rounds: Sequence[Round]) -> None:
    """Train in every style, the whole in the first round and then the decoder alone, and save to `out` in fp16."""
    torch.manual_seed(0)
    vae = build().to(device).train()
    for number, plan in enumerate(rounds):
        vae.encoder.requires_grad_(number == 0)
        assert vae.quant_conv is not None
        vae.quant_conv.requires_grad_(number == 0)
        learn(vae, plan, work)
    sample = gallery(rounds[0].scenes, rounds[0].seed, tuple(STYLES), work)[1][::97].copy()
    save(vae, to_tensor(sample).to(device), out)


def learn(vae: AutoencoderKL, plan: Round, work: Path) -> None:
    """One round."""
    device = vae.device
    there_and_back = in_bfloat16(_ThereAndBack(vae))
    pixels = torch.from_numpy(gallery(plan.scenes, plan.seed, tuple(STYLES), work)[1].copy()).to(device)

    def loss() -> Tensor:
        picked = torch.randint(len(pixels), (plan.batch,), device=device)
        x = to_tensor(pixels[picked]).contiguous(memory_format=torch.channels_last)
        y, divergence = there_and_back(x.bfloat16())
        return _difference(y.float(), x) + KL_WEIGHT * divergence

    fit(loss, [vae], plan, name="autoencoder")


@torch.no_grad()
def save(vae: AutoencoderKL, sample: Tensor, out: Path) -> None:
    """Save with the scaling factor that gives the latents of `sample` [N, 3, H, W] a spread of one."""
    spread = torch.cat([vae.encode(part).latent_dist.mean for part in sample.split(64)]).std()
    vae.register_to_config(scaling_factor=round(1 / spread.item(), 5))
    vae.half().save_pretrained(out)


class _ThereAndBack(nn.Module):
    """Pictures [B, 3, H, W] to their reconstructions and the divergence from a normal, in nats a latent value."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.vae.encode(x).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        latents = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        return self.vae.decode(latents.to(x.dtype)).sample, divergence


def _difference(y: Tensor, x: Tensor) -> Tensor:
    """Absolute and squared error, and the absolute error of the slopes, which keeps edges sharp."""
    slopes = sum(F.l1_loss(y.diff(dim=axis), x.diff(dim=axis)) for axis in (2, 3))
    return F.l1_loss(y, x) + F.mse_loss(y, x) + slopes
