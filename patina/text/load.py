"""Loading the language model that a run adapts, with its tokenizer: a folder in transformers layout, or a hub name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from patina.bases.quantize import Quantize, keep_gradients
from patina.errors import PatinaError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_model(place: str, dtype: torch.dtype, device: torch.device, quantize: Quantize = "none") -> PreTrainedModel:
    """The model in `dtype`, frozen and in eval mode; what is quantised is kept in 8 or 4 bits and computed in `dtype`.

    No program of the model's own is run. Raises PatinaError when there is no such model, or it is of another kind.
    """
    from transformers import AutoModelForCausalLM  # deferred: slow to import

    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True}
    if quantize != "none":
        options |= {"quantization_config": _bits(quantize, dtype), "device_map": {"": device}}
    with _explained(place):
        model = AutoModelForCausalLM.from_pretrained(place, **_where(place), **options)
    if quantize == "none":
        model.to(device)  # pyright: ignore[reportArgumentType]
    keep_gradients(model)
    return model.requires_grad_(False).eval()


def load_tokenizer(place: str) -> PreTrainedTokenizerBase:
    """The model's tokenizer. Raises PatinaError when there is none."""
    from transformers import AutoTokenizer

    with _explained(place):
        return AutoTokenizer.from_pretrained(place, **_where(place))


def _bits(quantize: Quantize, dtype: torch.dtype) -> Any:
    """QLoRA (Dettmers et al. 2023, arXiv:2305.14314): 4-bit NormalFloat, its scales quantised once more."""
    from transformers import BitsAndBytesConfig

    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def _where(place: str) -> dict[str, Any]:
    return {"local_files_only": Path(place).is_dir(), "trust_remote_code": False}


@contextmanager
def _explained(place: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise PatinaError(
            f"base_model: {place} cannot be loaded as a language model ({reason}); give a folder in transformers "
            "layout (config.json, model.safetensors, tokenizer.json), or a name on the hub (owner/name)"
        ) from error
