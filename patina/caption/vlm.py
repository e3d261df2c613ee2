"""Any chat model that sees (Qwen-VL, LLaVA, JoyCaption, ...): captions as good as what it is asked."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText
from transformers.modeling_utils import PreTrainedModel

from patina.caption.asking import PROMPT
from patina.caption.hub import Recipe, after_question
from patina.errors import PatinaError

MAX_PIXELS = 1024 * 1024
"""Larger pictures are scaled down: their tokens cost time and memory, and a caption does not get better."""

MAX_ASPECT = 100
"""Sides further apart than this are refused by some models; such a strip is squeezed."""


def _check(title: str, prompt: str, processor: Any, _model: PreTrainedModel) -> None:
    """Batched answers of a decoder are right only where the padding is on the left: beginnings then line up."""
    processor.tokenizer.padding_side = "left"
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    if processor.chat_template is None:
        raise PatinaError(f"{title}: it has no chat template, so it cannot be asked; give a chat model that sees")
    _question(processor, prompt)


def _prepare(_processor: Any, image: Image.Image, _prompt: str) -> Image.Image:
    """The picture, not larger than is looked at; the model's own scaling depends on the batch's text."""
    width, height = min(image.width, MAX_ASPECT * image.height), min(image.height, MAX_ASPECT * image.width)
    scale = min(1.0, (MAX_PIXELS / (width * height)) ** 0.5)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


def _collate(processor: Any, batch: Sequence[Image.Image], prompts: Sequence[str]) -> Mapping[str, Tensor]:
    texts = [_question(processor, prompt) for prompt in prompts]
    return processor(text=texts, images=list(batch), padding=True, return_tensors="pt")


def _question(processor: Any, prompt: str) -> str:
    """The prompt about one picture in the words of the model's chat template.

    Most templates take a list of parts; a few (JoyCaption's) take a string and place the picture themselves.
    """
    parts = [{"type": "image"}, {"type": "text", "text": prompt}]
    for content in (parts, prompt):
        chat = [{"role": "user", "content": content}]
        text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        if text.count(processor.image_token) == 1 and "'type'" not in text:
            return text
    raise PatinaError("its chat template has no place for a picture; give a chat model that sees")


RECIPE = Recipe(
    backend="vlm",
    title="VLM",
    default="Qwen/Qwen3-VL-2B-Instruct",
    model=AutoModelForImageTextToText,
    prompt=PROMPT,
    check=_check,
    prepare=_prepare,
    collate=_collate,
    skip=after_question,
)
