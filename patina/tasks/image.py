"""Image mode: a diffusion model learns to take noise out of latents that were encoded beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from patina.clip import PLAIN, Reading
from patina.engine.memory import again
from patina.family import Family
from patina.objective import Objective, draw, loss_sum
from patina.task import Batch
from patina.text.checkpointing import recompute_layers

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

    def encode(self, captions: Sequence[str]) -> Mapping[str, Tensor]:
        """Captions, or a preview's prompts, as the denoiser is told them."""
        return self.family.encode(self.pipe, captions, self.reading)

    def prepare(self, batch: Batch) -> Batch:
        """`latents`, `noise`, `t`, captions as tokens or (`text`, ...) encoded, `mask`, `factors` of loss, place."""
        latents, noise, t = self._drawn(batch)
        said = batch["cond"] if "cond" in batch else self.family.tokens(self.pipe, batch["captions"], self.reading)
        drawn = {"latents": latents, "noise": noise, "t": t, "time_ids": batch["time_ids"]}
        weighing = {"mask": batch["mask"]} if "mask" in batch else {}
        if "weights" in batch:
            weighing["factors"] = batch["weights"]  # `weights` are those of the captions' tokens by now
        return {**said, **drawn, **weighing, "epoch": batch["epoch"], "places": batch["places"]}

    def split(self, prepared: Batch, most: int) -> list[Batch]:
        rows = {name: part for name, part in prepared.items() if isinstance(part, Tensor | list)}
        return [
            {**prepared, **{name: part[at : at + most] for name, part in rows.items()}}
            for at in range(0, len(prepared["places"]), most)
        ]

    def recompute(self, drops: bool) -> None:
        """Let the denoiser, and text encoders that learn, keep each block's input alone; see `engine.memory.again`."""
        getattr(self.pipe, self.family.denoiser).enable_gradient_checkpointing(again(drops))
        for name in self.family.text_encoders:
            if name in self.parts:
                recompute_layers(getattr(self.pipe, name), again(drops))

    def forward(self, prepared: Batch) -> Tensor:
        denoiser = getattr(self.pipe, self.family.denoiser)
        noised = self.objective(prepared["latents"], prepared["noise"], prepared["t"])
        cond = prepared if "text" in prepared else {**prepared, **self._heard(prepared)}
        predicted = self.family.predict(self.pipe, noised.x.to(denoiser.dtype), noised.t, cond)
        return loss_sum(predicted, noised, prepared.get("mask"), prepared.get("factors"))

    def _heard(self, tokens: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        with torch.set_grad_enabled(self.trains_text):
            return self.family.listen(self.pipe, tokens, self.reading)

    def _drawn(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Latents sampled from the autoencoder's mean and spread, noise of their shape, and timesteps; on the CPU.

        Timesteps that the batch has already (`t` [B]) are kept.
        """
        mean, std = batch["mean"].float(), batch["std"].float()
        epoch, places, shape = batch["epoch"], batch["places"], mean.shape[1:]
        steps = self.objective.timesteps
        spread, _ = draw(self.seed + ENCODER_NOISE, epoch, places, shape, steps)
        noise, t = draw(self.seed, epoch, places, shape, steps, self.noise_offset)
        return mean + std * spread, noise, batch.get("t", t)
