"""Loading a model with a head for labels, and telling what of it a base has not learnt."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from patina.bases.quantize import BY_LIBRARY, Quantize, keep_gradients
from patina.bases.quantize import quantize as replace_layers
from patina.errors import PatinaError
from patina.text.load import bits, explained, where

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

KIND = "a model that can tell labels"
MOST_NEW = 0.2
"""Share of the encoder's weights that may be missing in a base: a pooler is a few hundredths of it."""


class Classifier(NamedTuple):
    """A frozen base with a head."""

    model: PreTrainedModel
    whole: tuple[str, ...]
    """Paths of what must be trained whole: the head, and whatever else the base has no weights for."""
    fresh: bool
    """Whether the head is new; a base that told as many labels already brings its own."""


def load_classifier(
    place: str,
    labels: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype,
    device: torch.device,
    quantize: Quantize = "none",
    seed: int = 0,
) -> Classifier:
    """The base in `dtype`, frozen and in eval mode, with one output a label; a new head is drawn from `seed`.

    Raises PatinaError when there is no such model, it has no kind that tells labels, or lacks more than a head.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification  # deferred: slow to import

    numbers = dict(enumerate(labels))
    names: dict[str, Any] = {"id2label": numbers, "label2id": {name: number for number, name in numbers.items()}}
    names["problem_type"] = "single_label_classification"
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "ignore_mismatched_sizes": True}
    with explained(place, KIND):
        config = AutoConfig.from_pretrained(place, **where(place), num_labels=len(labels), **names)
        config.get_text_config().pad_token_id = padding(config, tokenizer)
        if quantize in BY_LIBRARY:
            kept = bits(quantize, dtype, _head(_outline(config)))
            options |= {"quantization_config": kept, "device_map": {"": device}}
        with torch.random.fork_rng(devices=()), _without_report():
            torch.manual_seed(seed)
            model, found = AutoModelForSequenceClassification.from_pretrained(
                place, config=config, output_loading_info=True, **where(place), **options
            )
    new = _new(model, {*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])})
    head = _head(model)
    _refuse_unfit(place, model, [path for path in new if not _within(path, head)])
    fresh = any(_within(path, head) for path in new)
    whole = (*head, *(path for path in new if not _within(path, head)))
    if quantize not in BY_LIBRARY:
        replace_layers(model, quantize, dtype, whole)
        model.to(device)  # pyright: ignore[reportArgumentType]
    keep_gradients(model)
    return Classifier(model.requires_grad_(False).eval(), whole, fresh)


def padding(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that padding is made of, which the model must know: a decoder looks for the last that is another."""
    known = (tokenizer.pad_token_id, config.get_text_config().pad_token_id, tokenizer.eos_token_id)
    token: Any = next((token for token in known if token is not None), None)
    if token is None:
        raise PatinaError("base_model: its tokenizer has no pad_token and no eos_token; name one in its config")
    return token


def longest(model: PreTrainedModel) -> int | None:
    """Tokens that the model has positions for; None where it does not say. RoBERTa leaves its first ones unused."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    tables = [layer for path, layer in model.named_modules() if path.endswith("position_embeddings")]
    unused = [table.padding_idx + 1 for table in tables if isinstance(table, nn.Embedding) and table.padding_idx]
    return positions and positions - max(unused, default=0)


def _outline(config: PreTrainedConfig) -> PreTrainedModel:
    """The model without weights."""
    from transformers import AutoModelForSequenceClassification

    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config)


def _head(model: PreTrainedModel) -> list[str]:
    """Paths of what stands beside the encoder and has weights: `pre_classifier` and `classifier`, or `score`."""
    beside = [(name, part) for name, part in model.named_children() if part is not model.base_model]
    return [name for name, part in beside if next(part.parameters(), None) is not None]


@contextmanager
def _without_report() -> Iterator[None]:
    """Inside, transformers does not list which weights were missing: that is what is looked at here."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _new(model: PreTrainedModel, missing: set[str]) -> list[str]:
    """Paths of the layers whose weights are among `missing`, in the model's order."""
    owners = {key.rpartition(".")[0] for key, _ in model.named_parameters() if key in missing}
    return [path for path, _ in model.named_modules() if path in owners]


def _within(path: str, parts: Sequence[str]) -> bool:
    return any(path == part or path.startswith(f"{part}.") for part in parts)


def _refuse_unfit(place: str, model: PreTrainedModel, new: Sequence[str]) -> None:
    """Raises PatinaError where a base lacks so much that it is another's, or what it lacks cannot be trained."""
    layers: Mapping[str, nn.Module] = dict(model.named_modules())
    weights = [weight for path in new for weight in layers[path].parameters(recurse=False)]
    lacking = sum(weight.numel() for weight in weights) / sum(
        weight.numel() for weight in model.base_model.parameters()
    )
    if lacking > MOST_NEW:
        raise PatinaError(
            f"base_model: {place} lacks {lacking:.0%} of the weights of a {type(model).__name__}, first {new[0]}; give "
            "a folder whose config.json and model.safetensors belong together"
        )
    if any(not weight.is_floating_point() for weight in weights):
        raise PatinaError(f"quantize: {place} has no weights for {new[0]}, so it must be trained; write quantize: none")
