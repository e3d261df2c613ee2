"""Prompts that programs write into the pictures they draw: A1111 and its kin, ComfyUI, and plain EXIF descriptions."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from patina.data.images import opened

DESCRIPTION, USER_COMMENT, EXIF_FOLDER = 0x010E, 0x9286, 0x8769
"""EXIF tags: ImageDescription and UserComment, and where the latter stands."""

CAMERAS = ("digital camera", "dcim", "sony dsc", "samsung", "minolta", "untitled", "screenshot")
"""What cameras and phones write where a description would be."""

SETTINGS = re.compile(r"^\s*(Steps|Size|Seed|Sampler):\s", re.MULTILINE)
NEGATIVE = re.compile(r"^\s*Negative prompt:", re.MULTILINE)


def find_prompt(path: Path) -> str:
    """The prompt that a picture was drawn from, or its description; empty where it has none. Raises ImageError."""
    with opened(path) as image:
        texts = {str(name): value for name, value in image.info.items() if isinstance(value, str)}
        comment, description = _exif(image)
    for text in (texts.get("parameters", ""), comment):
        if text:
            return plain(positive(text))
    if "prompt" in texts:
        return plain(comfy_prompt(texts["prompt"]))
    return next(_descriptions(texts, description), "")


def _exif(image: Image.Image) -> tuple[str, str]:
    """UserComment and ImageDescription."""
    exif = image.getexif()
    comment = exif.get_ifd(EXIF_FOLDER).get(USER_COMMENT, b"")
    description = exif.get(DESCRIPTION, "")
    return _comment(comment), description if isinstance(description, str) else ""


def _comment(comment: object) -> str:
    """A UserComment says in its first eight bytes how the rest is written (Exif 2.3, 4.6.5)."""
    if not isinstance(comment, bytes):
        return comment if isinstance(comment, str) else ""
    code, rest = comment[:8], comment[8:]
    if not code.startswith(b"UNICODE"):
        return rest.decode("utf-8", "replace").strip("\0 ") if code.startswith(b"ASCII") else ""
    # Programs disagree about the order of the two bytes; English has its zero bytes in one of the places.
    big = rest[0::2].count(0) >= rest[1::2].count(0)
    return rest.decode("utf-16-be" if big else "utf-16-le", "replace").strip("\0 \ufeff")


def _descriptions(texts: Mapping[str, str], description: str) -> Iterator[str]:
    for text in (texts.get("Description", ""), texts.get("Comment", ""), description):
        text = " ".join(text.split())
        if text and not text.startswith("{") and not any(name in text.lower() for name in CAMERAS):
            yield text


def positive(parameters: str) -> str:
    """What A1111 wrote, without its negative prompt and settings."""
    end = min(
        (found.start() for found in (NEGATIVE.search(parameters), SETTINGS.search(parameters)) if found), default=None
    )
    return parameters[:end].strip()


def plain(prompt: str) -> str:
    """A prompt without what only a drawing program reads: <lora:...>, BREAK, and the weights of (words:1.2)."""
    text = re.sub(r"<[a-z]+:[^<>]*>", "", prompt)
    text = re.sub(r"\b(BREAK|AND)\b", ",", text)
    text = re.sub(r":\s*-?\d*\.?\d+\s*(?=[)\]])", "", text)
    text = re.sub(r"(?<!\\)[()\[\]{}]", "", text).replace("\\", "")
    return re.sub(r"(\s*,)+\s*", ", ", " ".join(text.split())).strip(", ")


def comfy_prompt(graph: str) -> str:
    """The text that ComfyUI's first sampler takes as `positive`, found by following the links of its graph."""
    try:
        nodes = json.loads(graph)
    except ValueError:
        return ""
    if not isinstance(nodes, dict):
        return ""
    for node in nodes.values():
        inputs = node.get("inputs") if isinstance(node, dict) else None
        if isinstance(inputs, dict) and "positive" in inputs and "negative" in inputs:
            return _text_behind(nodes, inputs["positive"])
    return ""


def _text_behind(nodes: Mapping[str, Any], link: object, depth: int = 20) -> str:
    """The text at the far end of a link ([node, output]); through conditioning nodes, which have links themselves."""
    if isinstance(link, str):
        return link
    if not isinstance(link, list) or not link or depth == 0:
        return ""
    node = nodes.get(str(link[0]))
    inputs = node.get("inputs", {}) if isinstance(node, dict) else {}
    wanted = ("text", "text_g", "text_l", "string", "value", "positive", "conditioning", "conditioning_1")
    found = (_text_behind(nodes, inputs[name], depth - 1) for name in wanted if name in inputs)
    return next(filter(None, found), "")
