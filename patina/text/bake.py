"""Add adapter folders to a language model's own weights, tensor by tensor, and prove the result against peft's."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from peft import LoraConfig, PeftConfig
from peft.tuners.lora import LoraLayer, LoraModel
from safetensors.torch import load_file
from torch import Tensor

from patina.bases.quantize import Quantize
from patina.errors import PatinaError
from patina.files import replacing_folder, require_room
from patina.lora.stream import TensorFile, open_tensors, read, rewrite, shape
from patina.tensors import ByRust
from patina.text.export import CONFIG, PREFIX, WEIGHTS
from patina.text.likeness import Likeness, compare, require_like
from patina.text.load import load_tokenizer
from patina.text.modelfile import modelfile
from patina.text.template import Template, choose_template

if TYPE_CHECKING:
    from transformers import PretrainedConfig

INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
BESIDE = ("config.json", "generation_config.json", INDEX, "LICENSE*", "NOTICE*")
"""What is copied from the base; the tokenizer is written anew, with the template of training."""
PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""peft's `init_lora_weights` that leave the base's weights alone."""
FACTORS = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")


class Adapter(NamedTuple):
    """One adapter folder, read."""

    folder: Path
    config: LoraConfig
    tensors: Mapping[str, Tensor]
    """Layer path and factor -> tensor, without peft's own prefix."""
    weight: float


class Term(NamedTuple):
    """What one adapter adds to one weight."""

    down: Tensor
    """A [rank,in]."""
    up: Tensor
    """B [out,rank]."""
    scale: float
    turned: bool
    """The weight is stored [in,out], as by GPT-2's Conv1D."""
    lengths: Tensor | None
    """DoRA's [out]: what the rows of the sum are brought to."""


class Baked(NamedTuple):
    """What was done."""

    layers: int
    like: Likeness
    spoken: bool
    """Whether Ollama can be told the template."""

    def report(self) -> str:
        """Lines for the user, the last one the outcome."""
        like, lines = self.like, []
        if like.divergence is not None:
            lines += [f"against the quantised base that was trained on: {like.divergence:.2g} nats a token (KL)"]
        if not self.spoken:
            lines += ["Modelfile without a TEMPLATE; it says why"]
        lost = f"{like.effect:.2g} (relative), and {like.lost:.2%} of that was lost by merging"
        return "\n".join([*lines, f"done, {self.layers} layers; the adapters change the logits by {lost}"])


def bake(
    base: Path, adapters: Sequence[tuple[Path, float]], target: Path, template: str | None, trained_on: Quantize
) -> Baked:
    """Write the folder `target`: `base` with each adapter added at its weight, in the base's own dtype.

    Sums are made in float64, one tensor at a time. Before the folder gets its name it is loaded, and its logits are
    compared with those of the base with the adapters on it by peft, quantised as `trained_on` says. `template` None:
    the one in the first adapter's folder. Raises PatinaError for what does not fit or cannot be merged.
    """
    files, read_in = _files(base), [_adapter(folder, weight) for folder, weight in adapters]
    _require_apart(target, [base, *(folder for folder, _ in adapters)])
    terms = _terms(base, files, read_in)
    first = adapters[0][0]
    own = first if (first / "tokenizer_config.json").is_file() else base
    words = choose_template(load_tokenizer(str(own)), template or "auto")
    require_room(target.parent, sum(file.path.stat().st_size for file in files))
    with replacing_folder(target) as part:
        for file in files:
            _rewrite(file, part / file.path.name, terms)
        for kept in (path for pattern in BESIDE for path in base.glob(pattern) if path.is_file()):
            shutil.copyfile(kept, part / kept.name)
        spoken = _write_words(words, part)
        like = compare(str(base), adapters, part, words, trained_on)
        require_like(like, target)
    return Baked(len(terms), like, spoken)


def _files(base: Path) -> list[TensorFile]:
    """The safetensors files of a folder in transformers layout."""
    if not (base / "config.json").is_file():
        raise PatinaError(f"{base}: holds no config.json; give the folder of the language model that was trained on")
    if "quantization_config" in json.loads((base / "config.json").read_text(encoding="utf-8")):
        raise PatinaError(f"{base}: its weights are quantised; give the folder of the 16-bit model it was made from")
    names = [WHOLE]
    if (base / INDEX).is_file():
        names = sorted(set(json.loads((base / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    if missing := [name for name in names if not (base / name).is_file()]:
        raise PatinaError(f"{base}: holds no {missing[0]}; download the model as safetensors")
    return [open_tensors(base / name) for name in names]


def _adapter(folder: Path, weight: float) -> Adapter:
    """Raises PatinaError for a folder that holds more, or other, than low-rank factors."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise PatinaError(f"{folder}: holds no {name}; give the folder that a run wrote")
    config = PeftConfig.from_pretrained(str(folder))
    if not isinstance(config, LoraConfig):
        raise PatinaError(f"{folder / CONFIG}: of peft_type {config.peft_type}; only LORA can be baked")
    if config.init_lora_weights not in PLAIN_STARTS:
        raise PatinaError(
            f"{folder / CONFIG}: init_lora_weights: {config.init_lora_weights} has changed the base's own weights; "
            "convert the adapter first (peft: save_pretrained with path_initial_model_for_weight_conversion)"
        )
    if config.use_dora and weight != 1:
        raise PatinaError(f"{folder}: a DoRA has no weight but 1; leave :{weight:g} out")
    tensors = {key.removeprefix(PREFIX): tensor for key, tensor in load_file(folder / WEIGHTS).items()}
    return Adapter(folder, config, tensors, weight)


def _factors(adapter: Adapter, files: Sequence[TensorFile]) -> dict[str, Tensor]:
    """What an adapter holds but for the base's own weights, which peft saves along with an output layer's factors."""
    factors = {key: tensor for key, tensor in adapter.tensors.items() if key.endswith(FACTORS)}
    for key in adapter.tensors.keys() - factors.keys():
        name = key.replace(".base_layer.", ".")
        own = next((read(file, name) for file in files if name in file.entries), None)
        if own is None or not torch.equal(own.float(), adapter.tensors[key].float()):
            raise PatinaError(f"{adapter.folder / WEIGHTS}: {key} is no factor of a linear layer; merge it with peft")
    return factors


def _require_apart(target: Path, sources: Sequence[Path]) -> None:
    if any(target.resolve() == source.resolve() for source in sources):
        raise PatinaError(f"{target}: is read from, so it is not written over; choose another name")
    if target.exists() and not (target / "config.json").is_file():
        raise PatinaError(f"{target}: what is there holds no model, so it is not written over; choose another name")


def _terms(base: Path, files: Sequence[TensorFile], adapters: Sequence[Adapter]) -> dict[str, list[Term]]:
    """Key in the base's files -> what is added there."""
    shapes = {key: tuple(shape(file, key)) for file in files for key in file.entries}
    found: dict[str, list[Term]] = {}
    for adapter in adapters:
        for path, term in _layers(base, files, adapter).items():
            key = _key(path, shapes)
            fits = (len(term.up), term.down.shape[1])[:: -1 if term.turned else 1]
            if key is None or shapes[key] != fits:
                raise PatinaError(f"{adapter.folder}: {path} is {fits}, and {base} has no such layer; is it its base?")
            found.setdefault(key, []).append(term)
    if any(len(terms) > 1 and any(term.lengths is not None for term in terms) for terms in found.values()):
        raise PatinaError("a DoRA cannot be joined with another adapter on the same layers; bake it alone")
    return found


def _key(path: str, known: Mapping[str, object]) -> str | None:
    """A layer's weight in the files, which may leave out what the model calls its body (`transformer.h.0.…`)."""
    names = (f"{path}.weight", f"{path.partition('.')[2]}.weight")
    return next((name for name in names if name in known), None)


def _layers(base: Path, files: Sequence[TensorFile], adapter: Adapter) -> dict[str, Term]:
    """A layer's path -> what is added there, scaled as peft scales it, asked on a model of no numbers."""
    from transformers import AutoConfig

    facts = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    layers = _skeleton(facts, adapter)
    left, found = _factors(adapter, files), {}
    for path, layer in layers.items():
        down, up, lengths = (left.pop(f"{path}.{name}", None) for name in FACTORS)
        if down is None or up is None:
            raise PatinaError(f"{adapter.folder / WEIGHTS}: holds no factors for {path}, which its config names")
        scale = layer.scaling["default"] * adapter.weight
        found[path] = Term(down, up, scale, bool(getattr(layer, "fan_in_fan_out", False)), lengths)
    if left:
        raise PatinaError(f"{adapter.folder / WEIGHTS}: {base} has no place for {next(iter(left))}; is it its base?")
    return found


def _skeleton(facts: PretrainedConfig, adapter: Adapter) -> dict[str, LoraLayer]:
    """The layers that an adapter's config means. Raises PatinaError for one whose weight is shared with another's."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fan_in_fan_out, which peft corrects
        model = AutoModelForCausalLM.from_config(facts)
        tied = facts.tie_word_embeddings and model.get_output_embeddings()
        adapter.config.init_lora_weights = True
        try:
            LoraModel(model, adapter.config, "default")
        except ValueError as error:
            raise PatinaError(f"{adapter.folder / CONFIG}: does not fit its base ({error})") from error
    layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    for path, layer in layers.items():
        if tied and layer.get_base_layer() is tied:
            raise PatinaError(
                f"{adapter.folder}: adapts {path}, which the base shares with its embeddings, and merged weights would "
                "change both; keep the adapter apart, or train without lm_head"
            )
    return layers


def _rewrite(file: TensorFile, target: Path, terms: Mapping[str, Sequence[Term]]) -> None:
    def changed(key: str) -> Tensor | None:
        if key not in terms:
            return None
        tensor = read(file, key)
        total = tensor.double()
        for term in terms[key]:
            total = _grown(total, term)
        cast = total.to(tensor.dtype)
        if not cast.isfinite().all():
            raise PatinaError(f"{key} of {file.path} would not be finite in {cast.dtype}; lower the adapter's weight")
        return cast

    rewrite(file, target, changed, file.metadata)


def _grown(weight: Tensor, term: Term) -> Tensor:
    """W + scale * B A, float64; for DoRA each output's row then has the length that was trained, as in peft."""
    product = term.up.double() @ term.down.double()
    grown = weight.add_(product.T if term.turned else product, alpha=term.scale)
    if term.lengths is None:
        return grown
    rows = grown.T if term.turned else grown
    rows.mul_((term.lengths.double().flatten() / rows.norm(dim=1))[:, None])
    return grown


def _write_words(words: Template, part: Path) -> bool:
    """The tokenizer with the template of training, and the Modelfile made from it; whether Ollama can be told it."""
    words.tokenizer.chat_template = words.jinja
    with ByRust(part):
        words.tokenizer.save_pretrained(part)
    text, spoken = modelfile(words)
    (part / "Modelfile").write_text(text, encoding="utf-8", newline="\n")
    return spoken
