"""BLIP: short captions of photographs, fast; a prompt is the beginning of the sentence that it goes on."""

from transformers import BlipForConditionalGeneration

from patina.caption.hub import Recipe, after_start, asked, joined

RECIPE = Recipe(
    backend="blip",
    title="BLIP",
    default="Salesforce/blip-image-captioning-large",
    model=BlipForConditionalGeneration,
    prompt="",
    check=lambda *_: None,
    prepare=asked,
    collate=joined,
    skip=after_start,
)
