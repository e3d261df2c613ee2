"""Reading checkpoints in one file, in the layout of Stability's own programs, without asking anyone for a config."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor, nn

from patina.bases.find import INDEX, PICKLES, Base
from patina.bases.signs import AUTOENCODER, UNET
from patina.errors import PatinaError
from patina.safeheader import read_header
from patina.tokenizer import clip_tokenizer

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

LAYOUTS = Path(__file__).parents[1] / "families" / "layouts"
"""A folder a family: what a diffusers folder holds, less the weights."""
TEXT = ("cond_stage_model.", "conditioner.embedders.")
CLIP = ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")
"""Where OpenAI's CLIP is; files that were saved by an early transformers lack the `text_model.` that follows."""
OPEN_CLIP = {"text_encoder": "cond_stage_model.model.", "text_encoder_2": "conditioner.embedders.1.model."}
"""Where OpenCLIP is: in 2.x the only encoder, in XL the second."""
BARE_VAE = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
"""How an autoencoder's tensors begin in a file of its own."""

Weights = dict[str, Tensor]


class Source(NamedTuple):
    """What a component is made of."""

    path: Path
    weights: Weights
    dtype: torch.dtype


def load(base: Base, dtype: torch.dtype, layout: Path, vae: AutoencoderKL | None) -> DiffusionPipeline:
    """The pipeline in a single file, in `dtype`; `vae`, where given, is used in place of the file's own.

    Averaged (EMA) weights beside the plain ones are ignored. Raises PatinaError naming the first tensor that the
    family's model has and the file has not, or in another shape.
    """
    import diffusers

    path, index = Path(base.place), _json(layout / INDEX)
    prefixes = (UNET, *TEXT) if vae is not None else (UNET, *TEXT, AUTOENCODER)
    weights = _weights(path, prefixes)
    given = {} if vae is None else {"vae": vae}
    parts = {
        name: PARTS[kind[1]](layout, name, kind[1], Source(path, weights, dtype))
        for name, kind in index.items()
        if isinstance(kind, list) and name not in given and kind[1] in PARTS
    }
    pipe = getattr(diffusers, base.family.pipeline)(**parts, **given, **base.family.pipeline_options)
    side = base.family.predicts.get(base.scheduler["prediction_type"], base.family.resolution)
    pipe.unet.register_to_config(sample_size=side // pipe.vae_scale_factor)
    return pipe


def load_vae(path: Path, layout: Path) -> AutoencoderKL:
    """The autoencoder in a file of its own or in a whole checkpoint, in fp32."""
    if path.suffix.lower() in PICKLES:
        raise PatinaError(
            f"vae: {path} is a pickle, which may run programs when it is opened; convert it once and give the new "
            f"file: python tools/lora.py convert-base {path} {path.with_suffix('.safetensors')}"
        )
    names = read_header(path).tensors
    whole = any(name.startswith(AUTOENCODER) for name in names)
    weights = _weights(path, (AUTOENCODER,) if whole else BARE_VAE)
    if not weights:
        raise PatinaError(f"vae: {path} holds no autoencoder of Stable Diffusion; name another file")
    return _autoencoder(layout, "vae", "AutoencoderKL", Source(path, weights, torch.float32))


def _weights(path: Path, prefixes: tuple[str, ...]) -> Weights:
    """The tensors whose names begin so, under the names that diffusers' converters know; mapped, not read."""
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(prefixes)]  # noqa: SIM118  it is no mapping
        return {_modern(name): file.get_tensor(name) for name in names}


def _modern(name: str) -> str:
    """CLIP's tensors were once named without the level that diffusers looks for."""
    for prefix in CLIP:
        rest = name.removeprefix(prefix)
        if rest != name and not rest.startswith("text_model."):
            return f"{prefix}text_model.{rest}"
    return name


def _unet(layout: Path, name: str, kind: str, source: Source) -> Any:
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    with init_empty_weights():
        model: Any = UNet2DConditionModel.from_config(_json(layout / name / "config.json"))
    return _filled(model, name, source, lambda: convert_ldm_unet_checkpoint(source.weights, model.config))


def _autoencoder(layout: Path, name: str, kind: str, source: Source) -> Any:
    """In fp32 whatever the others are: it computes in that."""
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    with init_empty_weights():
        model: Any = AutoencoderKL.from_config(_json(layout / name / "config.json"))
    source = source._replace(dtype=torch.float32)
    if model.state_dict().keys() <= source.weights.keys():
        return _filled(model, name, source, lambda: source.weights)  # under diffusers' own names
    return _filled(model, name, source, lambda: convert_ldm_vae_checkpoint(source.weights, model.config))


def _text_encoder(layout: Path, name: str, kind: str, source: Source) -> Any:
    import transformers
    from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint, convert_open_clip_checkpoint

    with init_empty_weights():
        model: Any = getattr(transformers, kind)(transformers.CLIPTextConfig.from_pretrained(layout / name))

    def converted() -> Weights:
        prefix = OPEN_CLIP[name]
        by_openai = name == "text_encoder" and not any(key.startswith(prefix) for key in source.weights)
        weights = source.weights
        found = (
            convert_ldm_clip_checkpoint(weights) if by_openai else convert_open_clip_checkpoint(model, weights, prefix)
        )
        # transformers 5.6 took this level out of CLIPTextModel and left it in CLIPTextModelWithProjection
        nested = any(key.startswith("text_model.") for key in model.state_dict())
        return found if nested else {key.removeprefix("text_model."): weight for key, weight in found.items()}

    return _filled(model, name, source, converted)


def _filled(model: nn.Module, name: str, source: Source, convert: Callable[[], Weights]) -> nn.Module:
    """The model, built without memory, with what the converter finds of it; what it has beyond that is left out."""
    expected = model.state_dict()
    try:
        found = convert()
    except KeyError as error:  # the converters take some tensors for granted
        raise _unfit(source, name, f"tensor {error} is missing") from error
    missing = [key for key in expected if key not in found]
    if missing:
        raise _unfit(source, name, f"{len(missing)} of its {len(expected)} tensors are missing, first {missing[0]}")
    for key, weight in expected.items():
        if found[key].shape != weight.shape:
            raise _unfit(source, name, f"{key} has shape {list(found[key].shape)}, not {list(weight.shape)}")
    model.load_state_dict({key: found[key].to(source.dtype) for key in expected}, assign=True)
    return model


def _tokenizer(layout: Path, name: str, kind: str, source: Source) -> Any:
    pad = _json(layout / name / "tokenizer_config.json")["pad_token"]
    return clip_tokenizer(pad if isinstance(pad, str) else pad["content"])


def _scheduler(layout: Path, name: str, kind: str, source: Source) -> Any:
    import diffusers

    return getattr(diffusers, kind).from_pretrained(layout, subfolder=name, local_files_only=True)


PARTS: Mapping[str, Callable[[Path, str, str, Source], Any]] = {
    "UNet2DConditionModel": _unet,
    "AutoencoderKL": _autoencoder,
    "CLIPTextModel": _text_encoder,
    "CLIPTextModelWithProjection": _text_encoder,
    "CLIPTokenizer": _tokenizer,
    "DDIMScheduler": _scheduler,
}
"""(layout, component, its class, source) -> the component, for each class that the layouts name."""


def _unfit(source: Source, name: str, why: str) -> PatinaError:
    return PatinaError(
        f"{source.path}: its {name} is cut down or of a kind that is not known here ({why}); give another checkpoint"
    )


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
