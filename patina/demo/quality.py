"""The gates that the embedded models must pass, each measured on scenes whose captions no model was taught."""

# diffusers and transformers annotate one-tuples and dicts where they take and give more: not ours to mend.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer

from patina.bases.find import find_base
from patina.bases.load import load_pipeline
from patina.caption.coca import CocaCaptioner
from patina.demo.language import END, prompt_text
from patina.demo.pictures import render, to_tensor
from patina.demo.questions import questions
from patina.demo.styles import STYLES
from patina.demo.world import Group, Scene, scenes
from patina.sampling import Drawing, generate

SEED = 90001
"""Of the scenes measured on; training used others."""
DRAWING: Drawing = {"steps": 20, "guidance": 3.0, "batch": 16}
"""What suits the embedded base best, found on prompts other than the gate's."""


class Gate(NamedTuple):
    """A measured figure and the least that passes; without one it only informs."""

    name: str
    figure: float
    least: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the figure suffices."""
        return self.least is None or self.figure >= self.least

    def __str__(self) -> str:
        """A line of the table of gates."""
        asked = "" if self.least is None else f"   at least {self.least:g}: {'passed' if self.passed else 'FAILED'}"
        return f"{self.name:36}{self.figure:8.3f}{asked}"


def named_right(scene: Scene, caption: str) -> bool:
    """Whether the caption names kind and colour of every group, a colour right before its thing."""
    words = caption.split()
    pairs = {(a, b.strip(",.")) for a, b in pairwise(words)}
    return all(any((group.colour, noun) in pairs for noun in _nouns(group.kind)) for group in scene.groups)


def _nouns(kind: str) -> tuple[str, ...]:
    return tuple(Group(kind, "", "", count).words().split()[-1] for count in (1, 2))


def load_captioner(folder: Path, device: torch.device) -> CocaCaptioner:
    """The captioner in `folder`, ready."""
    captioner = CocaCaptioner(str(folder))
    captioner.load(device, torch.float32)
    return captioner


def load_base(folder: Path, device: torch.device) -> StableDiffusionPipeline:
    """The base in `folder`, in float32 (its files are float16)."""
    pipe = load_pipeline(find_base(str(folder)), torch.float32, device)
    assert isinstance(pipe, StableDiffusionPipeline)
    return pipe


def caption_all(captioner: CocaCaptioner, images: Sequence[Image.Image], batch: int = 32) -> list[str]:
    """A caption for each picture, in order."""
    prepared = [captioner.prepare(image) for image in images]
    batches = (prepared[i : i + batch] for i in range(0, len(prepared), batch))
    return [caption.text for part in batches for caption in captioner.generate(part)]


def captioner_accuracy(captioner: CocaCaptioner, style: str, count: int = 500) -> float:
    """Share of unseen scenes in `style` of which kinds and colours are named right."""
    drawn = scenes(count, SEED, held_out=True)
    images = [Image.fromarray(pixels) for pixels in render([(scene, style) for scene in drawn])]
    return _share(named_right(s, c) for s, c in zip(drawn, caption_all(captioner, images), strict=True))


@torch.no_grad()
def reconstruction(vae: AutoencoderKL, style: str, count: int = 64) -> float:
    """Peak signal-to-noise ratio in dB of pictures through the autoencoder and back, the mean over pictures."""
    x = to_tensor(render([(scene, style) for scene in scenes(count, SEED, held_out=True)])).to(vae.device)
    y = torch.cat([vae.decode(vae.encode(part).latent_dist.mean).sample for part in x.split(16)])
    errors = ((y.clamp(-1, 1) - x) / 2).square().mean(dim=(1, 2, 3))
    return float((-10 * errors.log10()).mean())


def base_accuracy(pipe: StableDiffusionPipeline, captioner: CocaCaptioner, count: int = 200) -> float:
    """Share of unseen prompts whose picture the captioner reads back with kinds and colours right."""
    asked = scenes(count, SEED + 1, held_out=True)
    seeds = range(SEED, SEED + count)
    images = generate(pipe, [scene.caption() for scene in asked], seeds, **DRAWING)
    return _share(named_right(s, c) for s, c in zip(asked, caption_all(captioner, images), strict=True))


@torch.no_grad()
def language_accuracy(folder: Path, count: int = 200) -> float:
    """Share of unseen questions that greedy decoding answers exactly, and stops."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    asked = questions(count, SEED + 2, held_out=True)
    prompts = [prompt_text(tokenizer, q.prompt) for q in asked]
    ids = tokenizer(prompts, padding=True, add_special_tokens=False, return_tensors="pt", return_token_type_ids=False)
    answers = model.generate(**ids, max_new_tokens=48, do_sample=False)[:, ids.input_ids.shape[1] :]
    said = tokenizer.batch_decode(answers, skip_special_tokens=False)
    return _share(text.startswith(f"{q.answer}{END}") for q, text in zip(asked, said, strict=True))


def _share(verdicts: Iterable[bool]) -> float:
    return float(np.mean(list(verdicts)))


def gates(data: Path, device: torch.device) -> Iterator[Gate]:
    """All gates of the models below `data`, each as soon as it is measured; several minutes on a processor."""
    captioner = load_captioner(data / "captioner", device)
    for style in STYLES:
        yield Gate(f"captioner, {style}: read right", captioner_accuracy(captioner, style), 0.9)
    pipe = load_base(data / "base", device)
    decibels = {style: reconstruction(pipe.vae, style) for style in STYLES}
    for style, figure in decibels.items():
        yield Gate(f"autoencoder, {style}: dB", figure)
    yield Gate("autoencoder, all styles: dB", float(np.mean(list(decibels.values()))), 24.0)
    yield Gate("base: pictures read back right", base_accuracy(pipe, captioner), 0.8)
    yield Gate("language model: answers right", language_accuracy(data / "lm"), 0.9)
