"""How many pictures a second the labeller captions, beside the loop that each library's own pages show.

The weights are drawn, so that no caption ends by itself: all have as many tokens as are allowed, on both sides.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import timm
import timm.data
import torch
import transformers
from PIL import Image

from patina.bench import captioners
from patina.caption.backends import Chosen, Wish, choose
from patina.caption.label import Plan, label_folder, plan_labels
from patina.data.ahead import ahead
from patina.demo.folders import save_pictures
from patina.files import replacing_folder

SIZES = ((1024, 768), (768, 1024), (640, 640))
TOKENS = 30
"""Of every caption: what a sentence about a picture takes."""
START = 49406
"""CLIP's id for the beginning of a text."""
PLAIN = 8
"""Pictures that the plain loop is timed over, after one that is not."""
PROMPTS: Mapping[str, str] = {"florence2": "<DETAILED_CAPTION>", "vlm": "Describe the picture."}

Say = Callable[[Image.Image], object]


@dataclass(frozen=True)
class Speed:
    """Pictures a second with one backend."""

    backend: str
    parameters: int
    patina: float
    """Read from the disk, captioned and written into a table."""
    plain: float
    """Opened, captioned by the library's own generate, one after the other."""
    reading: float
    """Read and prepared alone, by as many threads: what could be captioned if the model took no time."""
    gpu_bytes: int | None


def measure(
    backends: Sequence[str], work: Path, device: torch.device, pictures: int, workers: int, *, narrow: bool
) -> Iterator[Speed]:
    """A row for each backend, as soon as it is known; models and pictures are drawn into `work` where they are not."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    folder = _pictures(work / f"pictures-{pictures}", pictures)
    for backend in backends:
        place = work / f"{backend}{'-narrow' if narrow else ''}"
        if not place.is_dir():
            with replacing_folder(place) as part:
                captioners.make(backend, part, device, narrow=narrow)
        yield _one(backend, place, folder, device, dtype, workers)


def _one(backend: str, model: Path, folder: Path, device: torch.device, dtype: torch.dtype, workers: int) -> Speed:
    _forget(device)
    chosen = choose([f"{backend}={model}"], Wish(prompt=PROMPTS.get(backend), max_tokens=TOKENS), str)
    chosen.captioner.load(device, dtype)
    plan = plan_labels(folder, folder.with_suffix(".csv"))
    batch = chosen.batch if device.type == "cuda" else min(chosen.batch, 8)
    _label(plan, chosen, batch, workers, batch)
    ours, reading = _label(plan, chosen, batch, workers), _reading(plan, chosen, batch, workers)
    taken = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    del chosen
    _forget(device)
    say, parameters = LOOPS[backend](model, device, dtype)
    return Speed(backend, parameters, ours, _plain(say, plan, device), reading, taken)


def _label(plan: Plan, chosen: Chosen, batch: int, workers: int, most: int | None = None) -> float:
    plan = Plan(plan.folder, plan.store, plan.mode, plan.images, plan.todo[:most], {})
    began = time.perf_counter()
    done = label_folder(
        plan, chosen.captioner, batch_size=batch, workers=workers, read=chosen.read, alike=chosen.alike, write=False
    )
    return done.done / (time.perf_counter() - began)


def _reading(plan: Plan, chosen: Chosen, batch: int, workers: int) -> float:
    began = time.perf_counter()
    for _, future in ahead(chosen.read, plan.todo, workers, depth=2 * batch + workers):
        future.result()
    return len(plan.todo) / (time.perf_counter() - began)


def _plain(say: Say, plan: Plan, device: torch.device) -> float:
    began = 0.0
    for number, path in enumerate(plan.todo[: PLAIN + 1]):
        if number == 1:
            began = time.perf_counter()
        with torch.inference_mode():
            say(Image.open(path).convert("RGB"))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return PLAIN / (time.perf_counter() - began)


def _open_clip(folder: Path, device: torch.device, dtype: torch.dtype) -> tuple[Say, int]:
    """What open_clip's `generate` does at each token, without its beams; itself it refuses transformers 5."""
    loaded: Any = open_clip.create_model_and_transforms(f"local-dir:{folder}", device=device)
    model, transform = loaded[0].eval().to(dtype), loaded[2]

    def say(image: Image.Image) -> object:
        pixels: Any = transform(image)
        seen = pixels.unsqueeze(0).to(device, dtype)
        latent, embedded = model._encode_image(seen)
        ids = torch.full((1, 1), START, device=device)
        for _ in range(TOKENS + 1):
            told = model(seen, ids, image_latent=latent, image_embs=embedded, output_labels=False)
            ids = torch.cat((ids, told["logits"][:, -1].argmax(-1, keepdim=True)), 1)
        return ids.tolist()

    return say, _count(model)


def _hub(kind: str) -> Callable[[Path, torch.device, torch.dtype], tuple[Say, int]]:
    def load(folder: Path, device: torch.device, dtype: torch.dtype) -> tuple[Say, int]:
        model = getattr(transformers, kind).from_pretrained(folder, dtype=dtype).to(device)
        processor: Any = transformers.AutoProcessor.from_pretrained(folder)
        words = {}
        if prompt := PROMPTS.get(folder.name.removesuffix("-narrow")):
            words = {"text": prompt}
        if processor.chat_template is not None:
            chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
            words = {"text": [processor.apply_chat_template(chat, add_generation_prompt=True)]}

        def say(image: Image.Image) -> object:
            inputs = processor(images=image, return_tensors="pt", **words).to(device, dtype)
            return model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False, num_beams=1)

        return say, _count(model)

    return load


def _timm(folder: Path, device: torch.device, dtype: torch.dtype) -> tuple[Say, int]:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval().to(device, dtype)
    facts = timm.data.resolve_data_config(model.pretrained_cfg)
    transform: Any = timm.data.create_transform(**facts)

    def say(image: Image.Image) -> object:
        pixels: Any = transform(image)
        return model(pixels.unsqueeze(0).to(device, dtype)).float().sigmoid().tolist()

    return say, _count(model)


LOOPS = {
    "coca": _open_clip,
    "blip": _hub("BlipForConditionalGeneration"),
    "blip2": _hub("Blip2ForConditionalGeneration"),
    "florence2": _hub("Florence2ForConditionalGeneration"),
    "vlm": _hub("AutoModelForImageTextToText"),
    "wd": _timm,
}


def _count(model: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def _pictures(folder: Path, count: int) -> Path:
    if not folder.is_dir():
        with replacing_folder(folder) as part:
            save_pictures(part, "plain", count, 1, SIZES)
    return folder


def _forget(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
