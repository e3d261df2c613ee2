"""How captions are read by CLIP text encoders: how much of a caption, and which layer is listened to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer


@dataclass(frozen=True)
class Reading:
    """What a config says about reading captions; the same for training and previews."""

    skip: int = 1
    """Which layer from the end is listened to, counted as a WebUI's `Clip skip` does: 1 is the family's own."""


PLAIN = Reading()
"""As the base was trained."""


def hidden_states(
    tokenizer: CLIPTokenizer, encoder: CLIPTextModel, captions: Sequence[str], reading: Reading
) -> Tensor:
    """Captions -> [B,77,W], the encoder's last hidden states after its final norm; gradients flow.

    As `StableDiffusionPipeline.encode_prompt` does, with no attention mask. What goes past the 75th token is cut off.
    """
    assert reading.skip == 1
    tokens = tokenizer(
        list(captions),
        padding="max_length",
        max_length=encoder.config.max_position_embeddings,
        truncation=True,
        return_tensors="pt",
    )
    return encoder(tokens.input_ids.to(encoder.device)).last_hidden_state


def penultimate(
    tokenizer: CLIPTokenizer,
    encoder: CLIPTextModel | CLIPTextModelWithProjection,
    captions: Sequence[str],
    reading: Reading,
) -> tuple[Tensor, Tensor | None]:
    """Captions -> [B,77,W] and [B,P]: the last layer but one before any final norm, and the projected caption.

    The second is None for an encoder without a projection. As `StableDiffusionXLPipeline.encode_prompt` does; gradients
    flow. What goes past the 75th token is cut off.
    """
    assert reading.skip == 1
    tokens = tokenizer(
        list(captions),
        padding="max_length",
        max_length=encoder.config.max_position_embeddings,
        truncation=True,
        return_tensors="pt",
    )
    said = encoder(tokens.input_ids.to(encoder.device), output_hidden_states=True)
    return said.hidden_states[-2], said.get("text_embeds")
