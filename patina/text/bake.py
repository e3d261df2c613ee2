"""Add adapter folders to a language model's own weights, tensor by tensor, and prove the result against peft's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from patina.bases.quantize import Quantize
from patina.errors import PatinaError
from patina.files import replacing_folder, require_room
from patina.lora.stream import TensorFile, open_tensors, read, rewrite, shape
from patina.tensors import ByRust
from patina.text.adapters import Term, read_adapter, skeleton, terms_of
from patina.text.export import WEIGHTS
from patina.text.likeness import Likeness, compare, require_like
from patina.text.load import load_tokenizer
from patina.text.modelfile import modelfile
from patina.text.template import Template, choose_template

if TYPE_CHECKING:
    from transformers import PretrainedConfig

INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
BESIDE = ("config.json", "generation_config.json", INDEX, "LICENSE*", "NOTICE*")
"""What is copied from the base; the tokenizer is written anew, with the template of training."""


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
    files = _files(base)
    _require_apart(target, [base, *(folder for folder, _ in adapters)])
    terms = _terms(base, files, adapters)
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


def _require_apart(target: Path, sources: Sequence[Path]) -> None:
    if any(target.resolve() == source.resolve() for source in sources):
        raise PatinaError(f"{target}: is read from, so it is not written over; choose another name")
    if target.exists() and not (target / "config.json").is_file():
        raise PatinaError(f"{target}: what is there holds no model, so it is not written over; choose another name")


def _terms(base: Path, files: Sequence[TensorFile], adapters: Sequence[tuple[Path, float]]) -> dict[str, list[Term]]:
    """Key in the base's files -> what is added there."""
    from transformers import AutoConfig

    facts = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    shapes = {key: tuple(shape(file, key)) for file in files for key in file.entries}
    found: dict[str, list[Term]] = {}
    for folder, weight in adapters:
        for path, term in _layers(folder, facts, files).items():
            key = _key(path, shapes)
            fits = (len(term.up), term.down.shape[1])[:: -1 if term.turned else 1]
            if key is None or shapes[key] != fits:
                raise PatinaError(f"{folder}: {path} is {fits}, and {base} has no such layer; is it its base?")
            if term.lengths is not None and weight != 1:
                raise PatinaError(f"{folder}: a DoRA has no weight but 1; leave :{weight:g} out")
            found.setdefault(key, []).append(term._replace(scale=term.scale * weight))
    if any(len(terms) > 1 and any(term.lengths is not None for term in terms) for terms in found.values()):
        raise PatinaError("a DoRA cannot be joined with another adapter on the same layers; bake it alone")
    return found


def _layers(folder: Path, facts: PretrainedConfig, files: Sequence[TensorFile]) -> dict[str, Term]:
    """A layer's path -> what an adapter adds there. Raises PatinaError for what cannot be merged."""
    terms = terms_of(read_adapter(folder), facts)
    if shared := terms.of.keys() & _tied(facts):
        raise PatinaError(
            f"{folder}: adapts {shared.pop()}, which the base shares with its embeddings, and merged weights would "
            "change both; keep the adapter apart, or train without lm_head"
        )
    for key, tensor in terms.left.items():  # peft saves the base's own weights along with an output layer's factors
        name = key.replace(".base_layer.", ".")
        own = next((read(file, name) for file in files if name in file.entries), None)
        if own is None or not torch.equal(own.float(), tensor.float()):
            raise PatinaError(f"{folder / WEIGHTS}: {key} is no factor of a linear layer; merge it with peft")
    return terms.of


def _tied(facts: PretrainedConfig) -> set[str]:
    """The path of the output layer where it has its weight from the embeddings."""
    if not facts.tie_word_embeddings:
        return set()
    model = skeleton(facts)
    head = model.get_output_embeddings()
    return {path for path, layer in model.named_modules() if layer is head}


def _key(path: str, known: Mapping[str, object]) -> str | None:
    """A layer's weight in the files, which may leave out what the model calls its body (`transformer.h.0.…`)."""
    names = (f"{path}.weight", f"{path.partition('.')[2]}.weight")
    return next((name for name in names if name in known), None)


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
