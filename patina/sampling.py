"""Pictures from a pipeline, the same for the same seed whatever else is drawn beside them."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from patina.errors import PatinaError

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

ADAPTER = "sampled"
"""What diffusers calls the LoRAs while a grid is drawn, each with its number behind it."""
ARGUMENTS = {"text": "prompt_embeds", "pooled": "pooled_prompt_embeds"}
"""What a family's `encode` gives -> what pipelines call it; with `negative_` before it, the negative prompt's."""

Encode = Callable[[Sequence[str]], Mapping[str, Tensor]]
"""Prompts -> what `ARGUMENTS` names of them, one row a prompt."""


class Drawing(TypedDict, total=False):
    """How pictures are drawn; `generate` has the defaults."""

    negative_prompt: str
    steps: int
    guidance: float
    size: tuple[int, int] | None
    batch: int
    dtype: torch.dtype | None
    encode: Encode | None


@torch.no_grad()
def generate(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    negative_prompt: str = "",
    steps: int = 20,
    guidance: float = 7.0,
    size: tuple[int, int] | None = None,
    batch: int = 4,
    dtype: torch.dtype | None = None,
    encode: Encode | None = None,
) -> list[Image.Image]:
    """One RGB picture a prompt, each from its own seed; `pipe` and the global random state are left as they were.

    `size` is (width, height) in pixels, None for the model's own; `batch` pictures are drawn at a time; `dtype` is what
    the denoiser computes in by autocast, None for its weights' own. A `guidance` of 1 or less uses no negative prompt.
    `encode` reads the prompts as a run's captions are read; None: as the pipeline does.
    Numbers that are not finite come out black. Raises RuntimeError when memory runs out, ValueError for a size that is
    no multiple of 8.
    """
    width, height = size or native_size(pipe)
    made: list[Image.Image] = []
    with _evaluating(pipe):
        for at in range(0, len(prompts), batch):
            part = list(prompts[at : at + batch])
            # Drawn on the CPU: a CUDA generator of the same seed gives other numbers.
            starts = [torch.Generator().manual_seed(seed) for seed in seeds[at : at + len(part)]]
            artist = _private(pipe)
            with torch.autocast(pipe.device.type, dtype, enabled=dtype not in (None, torch.float32)):
                latents = artist(  # pyright: ignore[reportCallIssue]  every pipeline class has it, their parent not
                    **_asked(part, negative_prompt, encode),
                    generator=starts,
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    width=width,
                    height=height,
                    output_type="latent",
                    return_dict=False,
                )[0]
            made += _decode(pipe, latents)
    return made


def _asked(prompts: list[str], negative_prompt: str, encode: Encode | None) -> dict[str, Any]:
    """The pipeline's arguments that say what to draw. All is encoded at once, so that it is equally long."""
    negative = [negative_prompt] * len(prompts)
    if encode is None:
        return {"prompt": prompts, "negative_prompt": negative}
    asked = {}
    for name, rows in encode([*prompts, *negative]).items():
        asked[ARGUMENTS[name]], asked[f"negative_{ARGUMENTS[name]}"] = rows.chunk(2)
    return asked


def draw_grid(
    pipe: DiffusionPipeline,
    lora: Path | None,
    strengths: Sequence[float],
    prompts: Sequence[str],
    *,
    seed: int = 0,
    **drawing: Unpack[Drawing],
) -> list[list[Image.Image]]:
    """Pictures with a LoRA file at each strength: a row a strength, in each a picture a prompt.

    Prompt number n has seed + n in every row, so that only the LoRA makes the difference; strength 0 is the base
    itself. diffusers' own reader loads the file, and it is taken off again at the end. `pipe` must carry no LoRA.
    Raises PatinaError when the file cannot be put on this base.
    """
    assert lora is not None or not any(strengths), "a strength without a LoRA"
    seeds = range(seed, seed + len(prompts))
    with carrying(pipe, [] if lora is None else [lora]) as weigh:
        rows = []
        for strength in strengths:
            weigh([] if lora is None else [strength])
            rows.append(generate(pipe, prompts, seeds, **drawing))
        return rows


def native_size(pipe: DiffusionPipeline) -> tuple[int, int]:
    """Width and height in pixels of the pictures that the base was trained on."""
    edge, scale = pipe.unet.config.sample_size, pipe.vae_scale_factor
    height, width = (edge, edge) if isinstance(edge, int) else edge
    return width * scale, height * scale


def _private(pipe: DiffusionPipeline) -> DiffusionPipeline:
    """The same weights behind a scheduler of its own, because drawing changes it, and without a progress bar."""
    artist = copy.copy(pipe)
    artist.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    artist.set_progress_bar_config(disable=True)
    return artist


def _decode(pipe: DiffusionPipeline, latents: Tensor) -> list[Image.Image]:
    """One at a time in the autoencoder's own dtype: at 512 pixels it takes more memory than the denoiser."""
    vae = pipe.vae
    pixels = [vae.decode(one.to(vae.dtype) / vae.config.scaling_factor).sample for one in latents.split(1)]
    finite = torch.nan_to_num(torch.cat(pixels).float(), nan=-1.0)
    return pipe.image_processor.postprocess(finite, output_type="pil")


@contextmanager
def _evaluating(pipe: DiffusionPipeline) -> Iterator[None]:
    """No dropout inside; afterwards every module is in the mode it was in."""
    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    modes = {module: module.training for part in parts for module in part.modules()}
    try:
        for part in parts:
            part.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def carrying(pipe: DiffusionPipeline, loras: Sequence[Path]) -> Iterator[Callable[[Sequence[float]], None]]:
    """Put LoRA files on a pipeline and yield what sets their weights, one a file; they are taken off again at the end.

    Their changes add up; where all weights are 0 it is the base itself. Raises PatinaError for one that does not fit.
    """
    names = [f"{ADAPTER}{number}" for number, _ in enumerate(loras)]

    def weigh(weights: Sequence[float]) -> None:
        used = [(name, weight) for name, weight in zip(names, weights, strict=True) if weight]
        if used:
            pipe.enable_lora()
            pipe.set_adapters([name for name, _ in used], [weight for _, weight in used])
        elif names:
            pipe.disable_lora()

    try:
        for name, lora in zip(names, loras, strict=True):
            _put_on(pipe, lora, name)
        yield weigh
    finally:  # a file that does not fit leaves something behind, too
        if names:
            pipe.unload_lora_weights()


def _put_on(pipe: DiffusionPipeline, lora: Path, name: str) -> None:
    if not lora.is_file():
        raise PatinaError(f"{lora}: no such file; give a LoRA file (.safetensors)")
    # It logs hundreds of lines of a LoRA for another base, and warns of one without a text encoder, which is fine.
    log = logging.getLogger("diffusers.loaders")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():  # peft asks whether several adapters are meant: they are
            warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
            pipe.load_lora_weights(str(lora.parent), weight_name=lora.name, adapter_name=name)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PatinaError(f"{lora}: diffusers cannot put it on this base ({reason}); is it a LoRA for it?") from error
    finally:
        log.setLevel(level)
    if not any(name in held for held in pipe.get_list_adapters().values()):  # diffusers would draw the base
        raise PatinaError(f"{lora}: nothing in it fits this base; give a LoRA that was trained on this kind of base")
