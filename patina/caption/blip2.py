"""BLIP-2: a language model that reads what a small network asked of the picture; wordier than BLIP, and larger."""

from typing import Any

from transformers import Blip2ForConditionalGeneration
from transformers.modeling_utils import PreTrainedModel

from patina.caption.hub import Recipe, after_question, asked, joined
from patina.errors import PatinaError


def _check(title: str, _prompt: str, processor: Any, model: PreTrainedModel) -> None:
    """Old snapshots lack the ids by which a picture takes its place in the text."""
    if processor.num_query_tokens is None or model.config.image_token_id is None:
        raise PatinaError(
            f"{title}: the snapshot is from before transformers 4.46 (no num_query_tokens or image_token_index); "
            f"fetch it again: hf download {RECIPE.default}"
        )


RECIPE = Recipe(
    backend="blip2",
    title="BLIP-2",
    default="Salesforce/blip2-opt-2.7b",
    model=Blip2ForConditionalGeneration,
    prompt="",
    check=_check,
    prepare=asked,
    collate=joined,
    skip=after_question,
)
