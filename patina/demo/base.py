"""The embedded base: a Stable Diffusion model with exactly SD1.5's topology, narrow, taught the plain scenes."""

# diffusers and transformers annotate one-tuples and dicts where they take and give more: not ours to mend.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel

from patina.demo.fit import Round, fit, in_bfloat16
from patina.demo.pictures import SIDE, gallery, to_tensor
from patina.demo.reading import IGNORED, LENGTHS, Questions, answers, with_prefix
from patina.demo.world import Scene
from patina.tokenizer import clip_tokenizer, save_as_vocab_and_merges

TEXT_WIDTH = 64
LOOKS = {"plain": (1.0, ""), "chalk": (0.25, ", in chalk")}
"""Styles the base knows: how many of a round's scenes it sees in each, and the words after the caption that ask for it.

A base that can only fill areas has no notion of a bright line on dark ground for a LoRA to call up; real ones have."""
EMPTY_CAPTIONS = 0.1
"""Share of captions that are left out in training, for classifier-free guidance (Ho and Salimans 2022)."""
NOISE_OFFSET = 0.1
"""Lets the model choose how bright a picture is as a whole; plain epsilon training ties it to the noise."""
PAIRS = 0.6
"""Share of pictures with two groups of things, which are a third of the world and the harder part of it."""
QUESTIONS = 0.1
"""Weight of the questions to the text encoder beside the noise's squared error."""


def unet() -> UNet2DConditionModel:
    """Four levels of two layers, attention in the first three: SD1.5's names, a tenth of its width."""
    return UNet2DConditionModel(
        sample_size=SIDE // 8,
        block_out_channels=(32, 64, 128, 128),
        layers_per_block=2,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=(4, 8, 8, 8),
        norm_num_groups=8,
    )


def text_encoder() -> CLIPTextModel:
    """Twelve layers, as in SD1.5, of TEXT_WIDTH."""
    shape = CLIPTextConfig(
        hidden_size=TEXT_WIDTH, intermediate_size=4 * TEXT_WIDTH, num_hidden_layers=12, num_attention_heads=4
    )
    return CLIPTextModel(shape)


def scheduler() -> DPMSolverMultistepScheduler:
    """SD1.5's noise schedule with a solver that needs few steps."""
    return DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing", steps_offset=1
    )


def teach(work: Path, out: Path, device: torch.device, rounds: Sequence[Round]) -> None:
    """Train UNet and text encoder together on plain scenes and save to `out`; the autoencoder must be there."""
    torch.manual_seed(0)
    vae = AutoencoderKL.from_pretrained(out / "vae").to(device).requires_grad_(False).eval()
    reader, denoiser = text_encoder().to(device), unet().to(device)
    for plan in rounds:
        learn(reader, denoiser, vae, plan, work)
    save(reader, denoiser, vae, out)


def learn(reader: CLIPTextModel, denoiser: UNet2DConditionModel, vae: AutoencoderKL, plan: Round, work: Path) -> None:
    """One round of denoising latents by their captions."""
    device = vae.device
    drawn, captions, latents = _pictures(plan, vae, work)
    ids, truth = _token_ids(captions).to(device), answers(drawn).to(device)
    empty, lengths = _token_ids([""]).to(device), torch.tensor(LENGTHS, device=device)
    pick = _picker([len(scene.groups) == 2 for scene in drawn], device)
    alphas = scheduler().alphas_cumprod.to(device)
    questions = Questions(TEXT_WIDTH).to(device)
    read_and_denoise = in_bfloat16(_ReadAndDenoise(reader, denoiser))

    def loss() -> Tensor:
        picked = pick(plan.batch)
        times = torch.randint(len(alphas), (plan.batch,), device=device)
        x = latents[picked].float()
        noise = torch.randn_like(x) + NOISE_OFFSET * torch.randn_like(x[:, :, :1, :1])
        alpha = alphas[times].view(-1, 1, 1, 1)
        noisy = (alpha.sqrt() * x + (1 - alpha).sqrt() * noise).bfloat16().contiguous(memory_format=torch.channels_last)
        dropped = torch.rand(plan.batch, 1, device=device) < EMPTY_CAPTIONS
        asked = with_prefix(torch.where(dropped, empty, ids[picked]), lengths)
        predicted, hidden = read_and_denoise(noisy, times, asked)
        answered = questions(hidden, asked, truth[picked].masked_fill(dropped, IGNORED))
        return F.mse_loss(predicted.float(), noise) + QUESTIONS * answered

    fit(loss, [denoiser, reader, questions], plan, name="base")


def _pictures(plan: Round, vae: AutoencoderKL, work: Path) -> tuple[list[Scene], list[str], Tensor]:
    """Scenes of every look with their captions and latents."""
    drawn, captions, latents = list[Scene](), list[str](), list[Tensor]()
    for style, (share, words) in LOOKS.items():
        some, pixels = gallery(round(plan.scenes * share), plan.seed, (style,), work)
        drawn += some
        captions += [scene.caption() + words for scene in some]
        latents.append(_encode(vae, pixels))
    return drawn, captions, torch.cat(latents)


def _picker(paired: Sequence[bool], device: torch.device) -> Callable[[int], Tensor]:
    """A function that draws places of pictures, PAIRS of them where `paired` is true."""
    flags = torch.tensor(paired, device=device)
    singles, pairs = (~flags).nonzero()[:, 0], flags.nonzero()[:, 0]

    def pick(count: int) -> Tensor:
        one, two = (some[torch.randint(len(some), (count,), device=device)] for some in (singles, pairs))
        return torch.where(torch.rand(count, device=device) < PAIRS, two, one)

    return pick


def save(reader: CLIPTextModel, denoiser: UNet2DConditionModel, vae: AutoencoderKL, out: Path) -> None:
    """Save the whole pipeline in diffusers layout, fp16."""
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=reader.eval(),
        tokenizer=clip_tokenizer(),
        unet=denoiser.eval(),
        scheduler=scheduler(),
        safety_checker=None,  # pyright: ignore[reportArgumentType]  diffusers types it as always there
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    pipe.to(dtype=torch.float16).save_pretrained(out)
    save_as_vocab_and_merges(clip_tokenizer(), out / "tokenizer")


class _ReadAndDenoise(nn.Module):
    """Noisy latents, timesteps and token ids to the predicted noise, and the text encoder's hidden states."""

    def __init__(self, reader: CLIPTextModel, denoiser: UNet2DConditionModel) -> None:
        super().__init__()
        self.reader, self.denoiser = reader, denoiser

    def forward(self, noisy: Tensor, times: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.reader(ids).last_hidden_state
        return self.denoiser(noisy, times, hidden).sample, hidden


def _token_ids(captions: list[str]) -> Tensor:
    return clip_tokenizer()(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids


@torch.no_grad()
def _encode(vae: AutoencoderKL, pixels: np.ndarray) -> Tensor:
    """Latents [N, 4, SIDE/8, SIDE/8] in fp16, on the scale the UNet sees."""
    parts = torch.from_numpy(pixels.copy()).split(256)
    encoded = [vae.encode(to_tensor(part.to(vae.device))).latent_dist.mean.half() for part in parts]
    return torch.cat(encoded) * vae.config.scaling_factor
