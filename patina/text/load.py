"""Loading the language model that a run adapts, with its tokenizer: a folder in transformers layout, or a hub name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from patina.bases.quantize import BY_LIBRARY, Quantize, keep_gradients
from patina.bases.quantize import quantize as replace_layers
from patina.errors import PatinaError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_model(place: str, dtype: torch.dtype, device: torch.device, quantize: Quantize = "none") -> PreTrainedModel:
    """The model in `dtype`, frozen and in eval mode; what is quantised is kept in 8 or 4 bits and computed in `dtype`.

    In fp8 the output layer stays whole, as transformers has it with bitsandbytes' formats.

    No program of the model's own is run. Raises PatinaError when there is no such model, or it is of another kind.
    """
    from transformers import AutoModelForCausalLM  # deferred: slow to import

    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True}
    if quantize in BY_LIBRARY:
        options |= {"quantization_config": bits(quantize, dtype), "device_map": {"": device}}
    with explained(place):
        model = AutoModelForCausalLM.from_pretrained(place, **where(place), **options)
    if quantize not in BY_LIBRARY:
        replace_layers(model.base_model, quantize, dtype)
        model.to(device)  # pyright: ignore[reportArgumentType]
    keep_gradients(model)
    return model.requires_grad_(False).eval()


def load_tokenizer(place: str) -> PreTrainedTokenizerBase:
    """The model's tokenizer. Raises PatinaError when there is none."""
    from transformers import AutoTokenizer

    with explained(place):
        return AutoTokenizer.from_pretrained(place, **where(place))


def bits(quantize: Quantize, dtype: torch.dtype, whole: Sequence[str] = ()) -> Any:
    """transformers' own word for `quantize`; the layers at the paths `whole` stay as they are.

    QLoRA (Dettmers et al. 2023, arXiv:2305.14314): 4-bit NormalFloat, its scales quantised once more.
    """
    from transformers import BitsAndBytesConfig

    kept: dict[str, Any] = {"llm_int8_skip_modules": list(whole)} if whole else {}
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, **kept)
    four: dict[str, Any] = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_use_double_quant=True, **four, **kept)


def where(place: str) -> dict[str, Any]:
    """What transformers is told of any base: a folder needs no network, and no program of its own is run."""
    return {"local_files_only": Path(place).is_dir(), "trust_remote_code": False}


@contextmanager
def explained(place: str, kind: str = "a language model") -> Iterator[None]:
    """Inside, what transformers raises becomes a PatinaError that names the base."""
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise PatinaError(
            f"base_model: {place} cannot be loaded as {kind} ({reason}); give a folder in transformers "
            "layout (config.json, model.safetensors, tokenizer.json), or a name on the hub (owner/name)"
        ) from error
