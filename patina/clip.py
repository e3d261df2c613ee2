"""How captions are read by CLIP text encoders: how much of a caption, and which layer is listened to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from patina.emphasis import weighed
from patina.errors import PatinaError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    Token = tuple[int, float]
    """Its number and its weight."""
    Tokens = Mapping[str, Tensor]
    """What `read` gives."""

CHUNK = 75
"""Tokens of text that an encoder takes at a time; a start and an end stand around them."""
NEAR = 20
"""A chunk that would part a phrase ends at a comma among its last so many tokens (A1111's default)."""
COMMA = ",</w>"


@dataclass(frozen=True)
class Reading:
    """What a config says about reading captions; the same for training and previews."""

    skip: int = 1
    """Which layer from the end is listened to, counted as a WebUI's `Clip skip` does: 1 is the last."""
    max_tokens: int = CHUNK
    """How many tokens of a caption are read, a multiple of 75; the rest is cut off."""
    weights: bool = False
    """Whether brackets weigh words as in a WebUI's prompt, or are text."""


PLAIN = Reading()
"""As the base was trained."""


def hidden_states(encoder: CLIPTextModel, tokens: Tokens, reading: Reading) -> Tensor:
    """What `read` gave -> [B,77n,W], the hidden states of the layer wanted after the encoder's final norm.

    The n chunks of a caption side by side, as A1111 does. No attention mask, as in `StableDiffusionPipeline`.
    Gradients flow. Raises PatinaError where the encoder has no such layer.
    """
    depth = encoder.config.num_hidden_layers
    if reading.skip > depth:
        raise PatinaError(f"clip_skip: {reading.skip}, but the text encoder has {depth} layers; write 1 or 2")
    said = encoder(_rows(encoder, tokens), output_hidden_states=reading.skip > 1)
    if reading.skip == 1:
        return _joined(said.last_hidden_state, tokens)
    return _joined(encoder.final_layer_norm(said.hidden_states[-reading.skip]), tokens)


def penultimate(
    encoder: CLIPTextModel | CLIPTextModelWithProjection, tokens: Tokens, reading: Reading
) -> tuple[Tensor, Tensor | None]:
    """What `read` gave -> [B,77n,W] and [B,P]: the last layer but one before any final norm, and the projected first
    chunk.

    The second is None for an encoder without a projection. As `StableDiffusionXLPipeline.encode_prompt` does, with the
    chunks of `hidden_states`. SDXL knows no other layer: A1111 (unless told otherwise in its settings) and sd-scripts
    take this one whatever the clip skip, so that 1 and 2 are the same here. Raises PatinaError for more.
    """
    if reading.skip > 2:
        raise PatinaError(
            f"clip_skip: {reading.skip}, but bases of this kind always listen to the last layer but one, in WebUIs "
            "too; leave it out"
        )
    said = encoder(_rows(encoder, tokens), output_hidden_states=True)
    pooled = said.get("text_embeds")
    chunks = tokens["ids"].shape[1]
    return _joined(said.hidden_states[-2], tokens), None if pooled is None else pooled[::chunks]


def read(tokenizer: CLIPTokenizer, captions: Sequence[str], reading: Reading) -> dict[str, Tensor]:
    """Captions -> `ids` [B,n,77] and, where brackets weigh any word, `weights` [B,n,77] fp32; on the CPU.

    `n` chunks of 75 tokens, each between a start and an end of its own: as many as the longest caption needs, and
    empty ones after the others.
    """
    rows = [_chunks(tokenizer, caption, reading)[0] for caption in captions]
    most = max(len(row) for row in rows)
    framed = [[_framed(tokenizer, chunk) for chunk in row + [[]] * (most - len(row))] for row in rows]
    ids, weights = ([[[token[part] for token in chunk] for chunk in row] for row in framed] for part in (0, 1))
    weighed_any = any(weight != 1 for row in weights for chunk in row for weight in chunk)
    return {"ids": torch.tensor(ids)} | ({"weights": torch.tensor(weights)} if weighed_any else {})


def count_cut(tokenizer: CLIPTokenizer, captions: Sequence[str], reading: Reading) -> int:
    """How many captions are longer than what is read of them."""
    return sum(_chunks(tokenizer, caption, reading)[1] for caption in captions)


def _chunks(tokenizer: CLIPTokenizer, caption: str, reading: Reading) -> tuple[list[list[Token]], bool]:
    """The caption's tokens in chunks of at most 75, at least one; and whether some did not fit.

    The last chunk that may be used is filled to the brim: nothing follows that a comma could lead.
    """
    parts = weighed(caption) if reading.weights else [(caption, 1.0)]
    # verbose would warn of every text above 77 tokens
    read = tokenizer([text for text, _ in parts], add_special_tokens=False, verbose=False).input_ids
    rest = [(number, weight) for numbers, (_, weight) in zip(read, parts, strict=True) for number in numbers]
    comma = tokenizer.convert_tokens_to_ids(COMMA)
    chunks = []
    while len(rest) > CHUNK and len(chunks) < reading.max_tokens // CHUNK - 1:
        end = _end([number == comma for number, _ in rest[: CHUNK + 1]])
        chunks.append(rest[:end])
        rest = rest[end:]
    return [*chunks, rest[:CHUNK]], len(rest) > CHUNK


def _end(commas: list[bool]) -> int:
    """Where a chunk ends, of its tokens and the one after: behind the last comma if that is near, else where it must.

    A1111's `comma_padding_backtrack`. A comma that comes first in the next chunk moves nothing.
    """
    near = [place for place in range(CHUNK - NEAR, CHUNK) if commas[place]]
    return near[-1] + 1 if near and not commas[CHUNK] else CHUNK


def _framed(tokenizer: CLIPTokenizer, chunk: list[Token]) -> list[Token]:
    """77 tokens: start, text, end, and what the tokenizer pads with."""
    known: Any = tokenizer  # by their annotations, its special tokens could be lists
    start, end, blank = known.bos_token_id, known.eos_token_id, known.pad_token_id
    return [(start, 1.0), *chunk, (end, 1.0), *[(blank, 1.0)] * (CHUNK - len(chunk))]


def _rows(encoder: CLIPTextModel | CLIPTextModelWithProjection, tokens: Tokens) -> Tensor:
    """[B*n,77], the chunks of one caption after another, where the encoder is."""
    return tokens["ids"].flatten(0, 1).to(encoder.device)


def _joined(states: Tensor, tokens: Tokens) -> Tensor:
    """Hidden states [B*n,77,W] -> [B,77n,W], each token's multiplied by its weight.

    Where a chunk has weights its mean is put back afterwards (A1111's emphasis "Original"); there over the whole
    batch, which a WebUI makes of one prompt, here a chunk, so that a picture's neighbours do not matter.
    """
    if "weights" in tokens:
        weights = tokens["weights"].flatten(0, 1).to(states.device)[:, :, None]
        scaled = states.float() * weights
        scaled = scaled * (_mean(states.float()) / _mean(scaled))
        weighs = (weights != 1).any(dim=1, keepdim=True)
        states = torch.where(weighs, scaled.to(states.dtype), states)
    return states.unflatten(0, (-1, tokens["ids"].shape[1])).flatten(1, 2)


def _mean(states: Tensor) -> Tensor:
    return states.mean(dim=(1, 2), keepdim=True)
