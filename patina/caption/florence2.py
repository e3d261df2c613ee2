"""Florence-2, the class that transformers has itself: fast, and as wordy as the task token asks."""

from typing import Any

from transformers import Florence2ForConditionalGeneration
from transformers.modeling_utils import PreTrainedModel

from patina.caption.hub import Recipe, after_start, asked, joined
from patina.errors import PatinaError

TASKS = ("<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>")


def _check(title: str, prompt: str, _processor: Any, model: PreTrainedModel) -> None:
    if prompt not in TASKS:
        raise PatinaError(
            f"{title}: --prompt {prompt!r} is no captioning task of Florence-2; write {' or '.join(TASKS)}"
        )
    # Its own settings put an end where the limit is, and a caption that was cut could not be told from a whole one.
    assert model.generation_config is not None
    model.generation_config.forced_eos_token_id = None


RECIPE = Recipe(
    backend="florence2",
    title="Florence-2",
    default="florence-community/Florence-2-base",
    model=Florence2ForConditionalGeneration,
    prompt="<DETAILED_CAPTION>",
    check=_check,
    prepare=asked,
    collate=joined,
    skip=after_start,
)
