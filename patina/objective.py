"""How noise is added to latents, what the denoiser must predict, and how much each picture's error weighs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from patina.errors import PatinaError

EPSILON, VELOCITY = "epsilon", "v_prediction"
ZERO_TERMINAL = "rescale_betas_zero_snr"
"""What diffusers calls zero-terminal SNR in a scheduler's config."""


class Noised(NamedTuple):
    """One batch made ready for the denoiser. All fp32 but `t`."""

    x: Tensor
    """[B,C,h,w] noisy latents."""
    t: Tensor
    """[B] timesteps, as the denoiser takes them."""
    target: Tensor
    """[B,C,h,w] what it should predict."""
    weight: Tensor
    """[B] factor of each picture's error."""


class Scheduler(Protocol):
    """What a diffusers scheduler with a discrete noise schedule knows (DDPM, DDIM, PNDM, Euler, ...)."""

    config: Any
    alphas_cumprod: Tensor


class Objective(Protocol):
    """A way of adding noise. It draws nothing itself: the same arguments always give the same result."""

    @property
    def timesteps(self) -> int:
        """How many timesteps there are; `draw` picks among them."""
        ...

    def to(self, device: torch.device | str) -> Objective:
        """The same objective with its tables on another device."""
        ...

    def __call__(self, x0: Tensor, noise: Tensor, t: Tensor) -> Noised:
        """Latents [B,C,h,w], noise of that shape and timesteps [B], all on the tables' device -> Noised."""
        ...


@dataclass(frozen=True)
class Ddpm:
    """Discrete diffusion, x = sqrt(a) x0 + sqrt(1-a) noise (Ho et al. 2020, arXiv:2006.11239, equation 4)."""

    alphas_cumprod: Tensor
    """[T] fp32: `a` at each timestep."""
    prediction: str
    """`epsilon`: the noise; `v_prediction`: sqrt(a) noise - sqrt(1-a) x0 (Salimans & Ho, arXiv:2202.00512)."""
    min_snr_gamma: float | None = None
    ends_in_noise: bool = field(init=False)
    """Whether nothing is left of the picture at the last timestep (zero-terminal SNR)."""

    def __post_init__(self) -> None:  # asked once: where the table is on a GPU, asking waits for it
        object.__setattr__(self, "ends_in_noise", bool(self.alphas_cumprod[-1] == 0))

    @property
    def timesteps(self) -> int:
        return len(self.alphas_cumprod)

    def to(self, device: torch.device | str) -> Ddpm:
        return replace(self, alphas_cumprod=self.alphas_cumprod.to(device))

    def __call__(self, x0: Tensor, noise: Tensor, t: Tensor) -> Noised:
        a = self.alphas_cumprod[t]
        signal, spread = (part.sqrt().view(-1, 1, 1, 1) for part in (a, 1 - a))
        x0, noise = x0.float(), noise.float()
        target = noise if self.prediction == EPSILON else signal * noise - spread * x0
        return Noised(signal * x0 + spread * noise, t, target, self._weight(a))

    def _weight(self, a: Tensor) -> Tensor:
        """Min-SNR-gamma (Hang et al. 2023, arXiv:2303.09556): weigh the error in x0 by min(snr, gamma).

        An error in x0 is 1/snr of the error in epsilon and 1/(snr+1) of the error in v, hence the divisors.
        Without gamma every picture weighs 1.

        With zero-terminal SNR the weight of v would be 0 where the noise is alone, and near it next to nothing: the
        step that the schedule was rescaled for, where a picture's brightness is decided, would never be learned. There
        min(snr+1, gamma) / (snr+1) is taken, as diffusers' training scripts do for v: it caps the same nearly clean
        timesteps and leaves 1 to the noisy ones. (sd-scripts keeps the paper's formula and weighs by the SNR from
        before the rescaling, which is not the one trained with.)
        """
        if self.min_snr_gamma is None:
            return torch.ones_like(a)
        snr = a / (1 - a)
        if self.prediction == EPSILON:
            return (self.min_snr_gamma / snr).clamp(max=1)  # = min(snr, gamma) / snr, and 1 rather than 0/0 at snr 0
        if self.ends_in_noise:
            snr = snr + 1
            return snr.clamp(max=self.min_snr_gamma) / snr
        return snr.clamp(max=self.min_snr_gamma) / (snr + 1)


def ddpm(scheduler: Scheduler, min_snr_gamma: float | None = None) -> Ddpm:
    """The objective that the base model's own scheduler describes, on the CPU (`.to` moves it).

    Raises PatinaError for a prediction type other than epsilon and v_prediction, for epsilon with zero-terminal SNR, or
    a gamma that is not positive.
    """
    prediction = scheduler.config.prediction_type
    if prediction not in (EPSILON, VELOCITY):
        raise PatinaError(
            f"the base model's scheduler predicts {prediction!r}; {EPSILON} and {VELOCITY} can be trained: "
            "choose another base, or correct prediction_type in its scheduler_config.json"
        )
    if min_snr_gamma is not None and not min_snr_gamma > 0:
        raise PatinaError(f"min_snr_gamma is {min_snr_gamma}; write a number above 0 (5 is usual), or leave it out")
    alphas_cumprod = scheduler.alphas_cumprod.float().clone()
    if _ends_in_noise(scheduler):
        if prediction == EPSILON:
            raise PatinaError(
                "noise.zero_terminal_snr: at the last timestep nothing is left of the picture, so that a base that "
                "predicts the noise (epsilon) learns nothing there; it needs v-prediction: write "
                "noise.zero_terminal_snr: false"
            )
        alphas_cumprod[-1] = 0
    return Ddpm(alphas_cumprod, prediction, min_snr_gamma)


def with_terminal_snr(scheduler: Scheduler, zero: bool | None) -> Scheduler:
    """The scheduler with zero-terminal SNR or without, as `zero` says, or where that is None as its own config says.

    Rescaled by diffusers (Lin et al. 2024, arXiv:2305.08891, algorithm 1). Where a change is needed the result is a
    DDIM scheduler of the same config, because not every kind can begin with noise alone; with `zero` it draws from the
    very last timestep on, as section 3.3 of the paper wants.
    """
    wanted = bool(scheduler.config.get(ZERO_TERMINAL)) if zero is None else zero
    if wanted == _ends_in_noise(scheduler):
        return scheduler
    from diffusers import DDIMScheduler  # deferred: slow to import

    changes: dict[str, Any] = {ZERO_TERMINAL: wanted}
    if wanted:
        changes["timestep_spacing"] = "trailing"
    changed: Any = DDIMScheduler.from_config(scheduler.config, **changes)
    return changed


def _ends_in_noise(scheduler: Scheduler) -> bool:
    """Some of diffusers' schedulers keep the last one slightly above 0, at 2 ** -24, to be able to divide by it."""
    return bool(scheduler.alphas_cumprod[-1] < 1e-6)


def draw(
    seed: int, step: int, samples: Sequence[int], shape: Sequence[int], timesteps: int, offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Noise [B,*shape] fp32 and timesteps [B] int64, on the CPU: a function of (seed, step, sample) alone.

    So a picture is given the same draw however it is batched, over however many processes, after a resume too.
    `samples` are numbers that tell the pictures of one step apart. `shape` is (C,h,w). `offset` adds one normal
    number times itself to each channel (noise offset: N. Guttenberg, "Diffusion with Offset Noise", 2023); the rest of
    the draw does not depend on it.
    """
    drawn = [_draw_one(seed, step, sample, shape, timesteps, offset) for sample in samples]
    noise, t = zip(*drawn, strict=True)
    return torch.stack(noise), torch.stack(t)


def _draw_one(
    seed: int, step: int, sample: int, shape: Sequence[int], timesteps: int, offset: float
) -> tuple[Tensor, Tensor]:
    place = hashlib.blake2b(f"{seed} {step} {sample}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(place, "little", signed=True))
    t = torch.randint(timesteps, (), generator=generator)
    noise = torch.randn(*shape, generator=generator)
    return noise + offset * torch.randn(shape[0], 1, 1, generator=generator), t


def loss_sum(prediction: Tensor, noised: Noised, mask: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
    """The squared error, a mean over C, h and w, weighed, SUMMED over the pictures: 0-dim fp32. The loop divides.

    `mask` [B,1,h,w] fp32 is a factor of each place's error. The mean is still over all places, so that a place counts
    as much in a picture of which little counts as in any (sd-scripts' masked loss, OneTrainer's unless it normalises).
    `weights` [B] fp32 is a factor of each picture's.
    """
    error = (prediction.float() - noised.target).square()
    if mask is not None:
        error = error * mask
    each = error.flatten(1).mean(1) * noised.weight
    return (each if weights is None else each * weights).sum()
