"""Image mode: a diffusion model learns to take noise out of latents that were encoded beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from patina.clip import PLAIN, Reading
from patina.family import Family
from patina.objective import Objective, draw, loss_sum
from patina.task import Batch

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

ENCODER_NOISE = 1 << 32
"""Added to the seed for the autoencoder's own noise: config seeds are below it, so that the two never meet."""


class ImageTask(nn.Module):
    """Noise, predict, weigh. All randomness is a function of (seed, epoch, place in the epoch)."""

    def __init__(
        self,
        family: Family,
        pipe: DiffusionPipeline,
        objective: Objective,
        components: tuple[str, ...],
        *,
        seed: int,
        noise_offset: float = 0.0,
        reading: Reading = PLAIN,
    ) -> None:
        super().__init__()
        self.family, self.pipe, self.objective = family, pipe, objective
        self.seed, self.noise_offset, self.reading = seed, noise_offset, reading
        self.parts = nn.ModuleDict({name: getattr(pipe, name) for name in components})
        self.trains_text = any(name in components for name in family.text_encoders)

    def adapted(self) -> Mapping[str, nn.Module]:
        return dict(self.parts.items())

    def count(self, batch: Batch) -> int:
        return len(batch["captions"])

    def encode(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Captions, or a preview's prompts, as the denoiser is told them."""
        return self.family.encode(self.pipe, captions, self.reading)

    def forward(self, batch: Batch) -> Tensor:
        denoiser = getattr(self.pipe, self.family.denoiser)
        latents, noise, t = (part.to(denoiser.device) for part in self._drawn(batch))
        noised = self.objective(latents, noise, t)
        cond = {name: part.to(denoiser.device) for name, part in self._conditions(batch).items()}
        predicted = self.family.predict(self.pipe, noised.x.to(denoiser.dtype), noised.t, cond)
        return loss_sum(predicted, noised)

    def _conditions(self, batch: Batch) -> dict[str, Tensor]:
        """What the denoiser is told: the captions, encoded beforehand (`cond`) or here, and the sizes and cuts."""
        if "cond" in batch:
            return {**batch["cond"], "time_ids": batch["time_ids"]}
        with torch.set_grad_enabled(self.trains_text):
            said = self.encode(batch["captions"])
        return {**said, "time_ids": batch["time_ids"]}

    def _drawn(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Latents sampled from the autoencoder's mean and spread, noise of their shape, and timesteps; on the CPU."""
        mean, std = batch["mean"].float(), batch["std"].float()
        epoch, places, shape = batch["epoch"], batch["places"], mean.shape[1:]
        steps = self.objective.timesteps
        spread, _ = draw(self.seed + ENCODER_NOISE, epoch, places, shape, steps)
        noise, t = draw(self.seed, epoch, places, shape, steps, self.noise_offset)
        return mean + std * spread, noise, t
