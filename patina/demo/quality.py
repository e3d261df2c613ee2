"""The gates that the embedded models must pass, each measured on scenes whose captions no model was taught."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer

from patina.caption.coca import CocaCaptioner
from patina.demo.language import END, prompt_text
from patina.demo.pictures import SIDE, render, to_tensor
from patina.demo.questions import questions
from patina.demo.styles import STYLES
from patina.demo.world import Group, Scene, scenes

SEED = 90001
"""Of the scenes measured on; training used others."""
NEGATIVE = ""
STEPS, GUIDANCE = 20, 5.0


def named_right(scene: Scene, caption: str) -> bool:
    """Whether the caption names kind and colour of every group, a colour right before its thing."""
    words = caption.split()
    pairs = {(a, b.strip(",.")) for a, b in pairwise(words)}
    return all(any((group.colour, noun) in pairs for noun in _nouns(group.kind)) for group in scene.groups)


def _nouns(kind: str) -> tuple[str, ...]:
    return tuple(Group(kind, "", "", count).words().split()[-1] for count in (1, 2))


def load_captioner(folder: Path, device: torch.device) -> CocaCaptioner:
    captioner = CocaCaptioner(str(folder))
    captioner.load(device, torch.float32)
    return captioner


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
    x = to_tensor(render([(scene, style) for scene in scenes(count, SEED, held_out=True)]))
    y = torch.cat([vae.decode(vae.encode(part).latent_dist.mean).sample for part in x.split(16)])
    errors = ((y.clamp(-1, 1) - x) / 2).square().mean(dim=(1, 2, 3))
    return float((-10 * errors.log10()).mean())


def generate(pipe: StableDiffusionPipeline, prompts: Sequence[str], batch: int = 16) -> list[Image.Image]:
    """One picture a prompt, each with its own fixed seed."""
    pipe.set_progress_bar_config(disable=True)
    made: list[Image.Image] = []
    for start in range(0, len(prompts), batch):
        part = list(prompts[start : start + batch])
        seeds = [torch.Generator().manual_seed(SEED + start + i) for i in range(len(part))]
        options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "width": SIDE, "height": SIDE}
        made += pipe(part, generator=seeds, **options)[0]
    return made


def base_accuracy(pipe: StableDiffusionPipeline, captioner: CocaCaptioner, count: int = 200) -> float:
    """Share of unseen prompts whose picture the captioner reads back with kinds and colours right."""
    asked = scenes(count, SEED + 1, held_out=True)
    images = generate(pipe, [scene.caption() for scene in asked])
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


def report(data: Path, device: torch.device) -> list[tuple[str, float, float]]:
    """All gates as rows of name, figure, and the least that passes."""
    captioner = load_captioner(data / "captioner", device)
    pipe = StableDiffusionPipeline.from_pretrained(data / "base", torch_dtype=torch.float32).to(device)
    rows = [(f"captioner, {style}: right", captioner_accuracy(captioner, style), 0.9) for style in STYLES]
    rows += [(f"autoencoder, {style}: dB", reconstruction(pipe.vae, style), 24.0) for style in STYLES]
    rows.append(("base: pictures read back right", base_accuracy(pipe, captioner), 0.8))
    rows.append(("language model: answers right", language_accuracy(data / "lm"), 0.9))
    return rows
