"""Captions by CoCa, the model of open_clip that both matches pictures with text and writes about them."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import open_clip
import torch
from open_clip import get_model_preprocess_cfg
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor

from patina.caption.captioner import Caption
from patina.caption.decode import check_decodable, greedy
from patina.caption.weights import LOAD_ERRORS, fingerprint, shortened
from patina.errors import PatinaError

MAX_TOKENS = 60
"""Text tokens of a caption at most: with a trigger word in front it still fits the 75 of Stable Diffusion."""

WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pth")
PRECISION = {torch.float32: "fp32", torch.bfloat16: "pure_bf16"}
"""open_clip's names. Its plain "bf16" keeps some layers in fp32, and CoCa's decoder then fails on mixed types."""

RANKED = 3
"""Styles that are named of each picture."""


@dataclass(frozen=True)
class _Loaded:
    model: open_clip.CoCa
    tokenizer: open_clip.SimpleTokenizer
    preprocess: Callable[[Image.Image], Tensor]
    settings: str
    device: torch.device
    dtype: torch.dtype
    styles: Tensor
    """(styles, width), of length one: what pictures are compared with."""


class CocaCaptioner:
    """Greedy captions by a CoCa model; see `resolve` for the ways to name one."""

    kind: Literal["caption", "tags"] = "caption"

    def __init__(self, model: str, max_tokens: int = MAX_TOKENS, styles: Sequence[str] = ()) -> None:
        self.name = f"CoCa {model}"
        self._source = resolve(model)
        self._max_tokens, self._styles = max_tokens, tuple(styles)
        self._loaded: _Loaded | None = None

    def load(self, device: torch.device, dtype: torch.dtype) -> None:
        """Bring the weights to the device, in float32 or bfloat16. Raises PatinaError."""
        source, weights = self._source
        try:
            model = open_clip.create_model(
                source, pretrained=weights, precision=PRECISION[dtype], device=device, require_pretrained=True
            )
            tokenizer = open_clip.get_tokenizer(source)
        except LOAD_ERRORS as error:
            raise PatinaError(
                f"{self.name}: cannot be loaded ({shortened(error)}); {_remedy(*self._source)}"
            ) from error
        if not isinstance(model, open_clip.CoCa):
            raise PatinaError(f"{self.name}: this {type(model).__name__} cannot write captions; give a CoCa model")
        if not isinstance(tokenizer, open_clip.SimpleTokenizer) or model.text.vocab_size != tokenizer.vocab_size:
            raise PatinaError(f"{self.name}: it does not use CLIP's own tokenizer; give a CoCa that does")
        check_decodable(model, self.name)
        config = _whole_picture(PreprocessCfg(**get_model_preprocess_cfg(model)))
        transform = cast(Callable[[Image.Image], Tensor], image_transform_v2(config, is_train=False))
        settings = f"{config} {dtype} {self._max_tokens}"
        styles = _embed(model.eval(), tokenizer, self._styles, device)
        self._loaded = _Loaded(model, tokenizer, transform, settings, device, dtype, styles)

    def prepare(self, image: Image.Image) -> Tensor:
        """One RGB picture to the model's normalised (3, height, width), float32 on the CPU."""
        return self._ready().preprocess(image)

    def generate(self, batch: Sequence[Tensor]) -> list[Caption]:
        """One caption a picture, the likeliest token each time."""
        loaded = self._ready()
        model, tokenizer = loaded.model, loaded.tokenizer
        limit = min(self._max_tokens + 2, model.text.context_length, model.context_length)
        with torch.inference_mode():
            seen = model(torch.stack(list(batch)).to(loaded.device, loaded.dtype))
        ids = greedy(model, seen["image_embs"], tokenizer.sot_token_id, tokenizer.eot_token_id, limit)
        best = (seen["image_features"] @ loaded.styles.T).topk(min(RANKED, len(self._styles))).indices.tolist()
        return [
            replace(_caption(tokenizer, row), styles=tuple(self._styles[at] for at in places))
            for row, places in zip(ids.tolist(), best, strict=True)
        ]

    def embed(self, batch: Sequence[Tensor]) -> Tensor:
        """Prepared pictures to (N, width) fp32 on the CPU, each of length one: near where pictures show the same."""
        loaded = self._ready()
        with torch.inference_mode():
            seen = loaded.model.encode_image(torch.stack(list(batch)).to(loaded.device, loaded.dtype), normalize=True)
        return seen.float().cpu()

    def fingerprint(self) -> str:
        """Twelve hex digits of the settings and of the beginning of every weight."""
        loaded = self._ready()
        return fingerprint(loaded.settings, loaded.model.state_dict())

    def _ready(self) -> _Loaded:
        assert self._loaded is not None, "load() comes first"
        return self._loaded


def _remedy(source: str, weights: str | None) -> str:
    """What to do about a model that does not load: fetch it by hand where it would have come from the network."""
    known = {} if weights is None or Path(weights).is_file() else open_clip.get_pretrained_cfg(source, weights)
    repository = source.removeprefix("hf-hub:") if source.startswith("hf-hub:") else known.get("hf_hub", "").rstrip("/")
    if not repository:
        return f"is it a whole CoCa of open_clip, with {_layout()}?"
    return (
        f"where there is a network: hf download {repository} --local-dir models/coca; then --backend coca=models/coca, "
        f"a folder with {_layout()}"
    )


def _whole_picture(config: PreprocessCfg) -> PreprocessCfg:
    """The model's own preprocessing, except that cropping to a square becomes squeezing to a square.

    A caption should see the edges of wide art. Padding would keep the proportions, but bars get described as frames,
    and CoCa was trained on crops of many proportions squeezed to a square. "shortest", which crops, is what open_clip
    writes into a config when nobody chose; a model that asks to be padded is.
    """
    return replace(config, resize_mode="squash") if config.resize_mode == "shortest" else config


@torch.inference_mode()
def _embed(
    model: open_clip.CoCa, tokenizer: open_clip.SimpleTokenizer, phrases: Sequence[str], device: torch.device
) -> Tensor:
    """Phrases to (phrases, width), each of length one."""
    context = model.text.context_length
    ids = torch.stack([tokenizer(phrase, context_length=context)[0] for phrase in phrases or [""]])
    return model.encode_text(ids.to(device))[: len(phrases)]


def _caption(tokenizer: open_clip.SimpleTokenizer, ids: list[int]) -> Caption:
    """Ids of one row to text. What follows the end is padding, whose id would read as an exclamation mark."""
    whole = tokenizer.eot_token_id in ids
    words = ids[1 : ids.index(tokenizer.eot_token_id)] if whole else ids[1:]
    # A row that was cut may end within a letter of several bytes.
    text = tokenizer.decode(words).replace("\N{REPLACEMENT CHARACTER}", "")
    # CLIP's decoder puts a space after every token, before a comma too.
    return Caption(re.sub(r" (?=[,.;:!?])", "", " ".join(text.split())), truncated=not whole)


def resolve(model: str) -> tuple[str, str | None]:
    """A user's name for a model to open_clip's model name and `pretrained`; no weights are read yet.

    Known: a folder in open_clip's layout; `ARCH=FILE`; `ARCH:TAG` of open_clip's list; `org/name` or `hf-hub:org/name`
    on the Hugging Face hub. Only the last two reach for the network. Raises PatinaError for anything else.
    """
    path = Path(model.removeprefix("local-dir:")).expanduser()
    if path.is_dir():
        return _resolve_folder(path)
    if path.is_file():
        raise PatinaError(f"{model}: say which architecture the file holds, for example coca_ViT-L-14={model}")
    if model.startswith("hf-hub:"):
        return model, None
    if "=" in model:
        return _resolve_file(*model.split("=", 1))
    if _looks_like_a_path(model):
        raise PatinaError(f"{model}: no such folder; give a folder with {_layout()}")
    if "/" in model:
        return f"hf-hub:{model}", None
    return _resolve_tag(*model.partition(":")[::2])


def _looks_like_a_path(model: str) -> bool:
    """Whether it must be a mistyped folder: a typing error shall not set off a search of the network."""
    first, *rest = model.split("/")
    return model.startswith((".", "~", "/", "local-dir:")) or len(rest) > 1 or (len(rest) == 1 and Path(first).exists())


def _resolve_folder(path: Path) -> tuple[str, None]:
    config = (path / "open_clip_config.json").is_file()
    if not config or not any(any(path.glob(pattern)) for pattern in WEIGHT_FILES):
        raise PatinaError(f"{path}: {'the weights are' if config else 'the config is'} missing; expected {_layout()}")
    return f"local-dir:{path}", None


def _layout() -> str:
    return "open_clip_config.json and open_clip_model.safetensors (or open_clip_pytorch_model.bin)"


def _resolve_file(arch: str, weights: str) -> tuple[str, str]:
    _check_arch(arch)
    path = Path(weights).expanduser()
    if not path.is_file():
        raise PatinaError(f"{weights}: no such file; after {arch}= comes the path of its weights")
    return arch, str(path)


def _resolve_tag(arch: str, tag: str) -> tuple[str, str]:
    _check_arch(arch)
    tags = open_clip.list_pretrained_tags_by_model(arch)
    if tag not in tags:
        known = ", ".join(f"{arch}:{known}" for known in tags) or "none"
        raise PatinaError(f"{arch}:{tag}: no such weights; known are: {known}; or give {arch}=FILE")
    return arch, tag


def _check_arch(arch: str) -> None:
    known = [name for name in open_clip.list_models() if name.startswith("coca_")]
    if arch not in known:
        raise PatinaError(
            f"{arch}: neither a folder nor a CoCa of open_clip ({', '.join(known)}); give a folder with {_layout()}, "
            "ARCH=FILE, ARCH:TAG, or org/name on the Hugging Face hub"
        )
