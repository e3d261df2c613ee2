"""Loading the base model that a run adapts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from patina.errors import PatinaError
from patina.family import Family

if TYPE_CHECKING:
    import torch
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

INDEX = "model_index.json"


def load_pipeline(base_model: str, family: Family, dtype: torch.dtype, device: torch.device) -> DiffusionPipeline:
    """The base in diffusers layout, frozen and in eval mode, its autoencoder in fp32. Raises PatinaError."""
    import diffusers

    path = Path(base_model)
    _check(path, family)
    kind = getattr(diffusers, family.pipeline)
    try:
        pipe = kind.from_pretrained(
            path, dtype=dtype, local_files_only=True, safety_checker=None, requires_safety_checker=False
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise PatinaError(f"base_model: {path} cannot be loaded ({reason}); is it a whole diffusers folder?") from error
    pipe.set_progress_bar_config(disable=True)
    pipe.to(device)
    pipe.vae.float()
    for name in ("vae", family.denoiser, *family.text_encoders):
        getattr(pipe, name).requires_grad_(False).eval()
    return pipe


def _check(path: Path, family: Family) -> None:
    if path.is_file():
        raise PatinaError(
            f"base_model: {path} is a single file; this version reads folders in diffusers layout (with {INDEX})"
        )
    index = path / INDEX
    if not index.is_file():
        raise PatinaError(f"base_model: {path} holds no {INDEX}; give a folder in diffusers layout")
    try:
        found = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    except (ValueError, AttributeError) as error:
        raise PatinaError(f"base_model: {index} is no JSON object ({error}); download the model again") from error
    if found != family.pipeline:
        raise PatinaError(f"base_model: {path} is a {found}; this version trains {family.pipeline} bases")
