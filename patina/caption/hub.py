"""Captions by the image-to-text models of transformers; what one kind needs of its own is a Recipe."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, BitsAndBytesConfig
from transformers.modeling_utils import PreTrainedModel

from patina.caption.asking import MAX_TOKENS, with_hint
from patina.caption.captioner import Caption
from patina.caption.weights import LOAD_ERRORS, Layout, find_folder, fingerprint, shortened
from patina.errors import PatinaError

Quantize = Literal["none", "8bit", "4bit"]


@dataclass(frozen=True)
class Recipe:
    """One kind of model: the facts and the functions in which it differs from the others."""

    backend: str
    title: str
    default: str
    """Its weights on the Hugging Face hub, where the user names none."""
    model: Any
    """The class of transformers, or Auto class, whose `from_pretrained` reads it."""
    prompt: str
    """What it is asked where the user asks nothing."""
    check: Callable[[str, str, Any, PreTrainedModel], None]
    """(title, prompt, processor, model): raises PatinaError where they do not go together."""
    prepare: Callable[[Any, Image.Image, str], Any]
    """(processor, RGB picture, prompt) to what `collate` takes a list of; runs in threads."""
    collate: Callable[[Any, Sequence[Any], Sequence[str]], Mapping[str, Tensor]]
    """(processor, prepared pictures, a prompt each) to the model's inputs."""
    skip: Callable[[Mapping[str, Tensor]], int]
    """How many ids of an answer are not the caption's, by the inputs."""


@dataclass(frozen=True)
class _Loaded:
    model: PreTrainedModel
    processor: Any
    device: torch.device
    dtype: torch.dtype


class HubCaptioner:
    """Greedy captions by a model of transformers, from a folder or the Hugging Face hub."""

    kind: Literal["caption", "tags"] = "caption"

    def __init__(
        self,
        recipe: Recipe,
        model: str = "",
        *,
        prompt: str | None = None,
        max_tokens: int = MAX_TOKENS,
        quantize: Quantize = "none",
    ) -> None:
        self._recipe, self._source = recipe, model or recipe.default
        self.name = f"{recipe.title} {self._source}"
        self._prompt = recipe.prompt if prompt is None else prompt
        self._max_tokens = max_tokens
        self._quantize: Quantize = quantize
        self._loaded: _Loaded | None = None

    def load(self, device: torch.device, dtype: torch.dtype) -> None:
        """Bring the weights to the device. Raises PatinaError where they are missing, incomplete or of another kind."""
        layout = Layout(self._recipe.backend, ("config.json", "*.safetensors", "tokenizer*", "*processor_config.json"))
        folder = find_folder(self._source, layout)
        placed = _quantized(self._quantize, device, dtype)
        try:
            model, found = self._recipe.model.from_pretrained(
                folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True, **placed
            )
            processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True)
        except LOAD_ERRORS as error:
            raise PatinaError(
                f"{self.name}: cannot be loaded ({shortened(error)}); is it a whole {self._recipe.title}?"
            ) from error
        # transformers would fill these with random numbers and only warn; buffers it computes.
        lost = sorted(found["missing_keys"] & {name for name, _ in model.named_parameters()})
        if lost:
            raise PatinaError(
                f"{self.name}: {len(lost)} weights are missing ({', '.join(lost[:3])}); fetch the model again"
            )
        self._recipe.check(self.name, self._prompt, processor, model)
        # A tokenizer's first call changes its settings, which must not happen in several threads at once.
        self._recipe.prepare(processor, Image.new("RGB", (32, 32)), self._prompt)
        model = model if placed else model.to(device)
        self._loaded = _Loaded(model.eval(), processor, device, dtype)

    def prepare(self, image: Image.Image) -> Any:
        """One RGB picture to what `generate` takes a list of."""
        return self._recipe.prepare(self._ready().processor, image, self._prompt)

    def generate(self, batch: Sequence[Any], hints: Sequence[str] = ()) -> list[Caption]:
        """One caption a picture, the likeliest token each time; a hint each joins the prompt where it has a place."""
        loaded = self._ready()
        prompts = [with_hint(self._prompt, hint) for hint in hints] if hints else [self._prompt] * len(batch)
        inputs = self._recipe.collate(loaded.processor, batch, prompts)
        sent = {name: _sent(value, loaded) for name, value in inputs.items()}
        with torch.inference_mode():
            ids = loaded.model.generate(  # pyright: ignore[reportCallIssue]
                **sent, max_new_tokens=self._max_tokens, do_sample=False, num_beams=1
            )
        written = ids[:, self._recipe.skip(inputs) :]
        tokenizer = loaded.processor.tokenizer
        texts = tokenizer.batch_decode(written, skip_special_tokens=True)
        ends = _ends(loaded)
        return [
            Caption(" ".join(text.split()), truncated=len(row) >= self._max_tokens and row[-1] not in ends)
            for text, row in zip(texts, written.tolist(), strict=True)
        ]

    def fingerprint(self) -> str:
        """Twelve hex digits of the settings and of the beginning of every weight."""
        loaded = self._ready()
        settings = f"{self._recipe.backend} {loaded.dtype} {self._max_tokens} {self._quantize} {self._prompt}"
        return fingerprint(settings, loaded.model.state_dict())

    def _ready(self) -> _Loaded:
        assert self._loaded is not None, "load() comes first"
        return self._loaded


def _quantized(bits: Quantize, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` is told; bitsandbytes places the weights itself, as it makes them small."""
    if bits == "none":
        return {}
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    config = BitsAndBytesConfig(**four) if bits == "4bit" else BitsAndBytesConfig(load_in_8bit=True)
    return {"quantization_config": config, "device_map": {"": device}}


def asked(processor: Any, image: Image.Image, prompt: str) -> Mapping[str, Tensor]:
    """One picture and its prompt to the model's inputs, a batch of one."""
    return processor(images=image, text=prompt, return_tensors="pt")


def joined(_processor: Any, batch: Sequence[Mapping[str, Tensor]], _prompts: Sequence[str]) -> dict[str, Tensor]:
    """Pictures prepared one by one, prompt included, to one batch: every row is as long as the others."""
    return {name: torch.cat([one[name] for one in batch]) for name in batch[0]}


def after_start(_inputs: Mapping[str, Tensor]) -> int:
    """All but the id that a decoder of its own begins with."""
    return 1


def after_question(inputs: Mapping[str, Tensor]) -> int:
    """A model that goes on in the same text repeats the question before its answer."""
    return inputs["input_ids"].shape[1]


def _sent(value: Tensor, loaded: _Loaded) -> Tensor:
    return value.to(loaded.device, loaded.dtype if value.is_floating_point() else None)


def _ends(loaded: _Loaded) -> set[int | None]:
    """Ids that stand only at or after the end of a text."""
    tokenizer, chosen = loaded.processor.tokenizer, loaded.model.generation_config
    stops = chosen.eos_token_id if chosen else None
    known = {tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.sep_token_id}
    return known | set(stops if isinstance(stops, list) else [stops])
