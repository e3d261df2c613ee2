"""Where a captioning model's files are, and what tells one model from another; random weights never run."""

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import httpx
from safetensors import SafetensorError
from torch import Tensor

from patina.errors import PatinaError

FETCHED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.csv")
"""What is fetched of a model on the hub: no code, and no pickled weights, which could hold some."""

NOT_FETCHED = (OSError, HFValidationError, httpx.HTTPError)
"""What the hub's client raises for a name that does not exist, for no network, and for files that need a login."""

LOAD_ERRORS = (OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, EOFError)
LOAD_ERRORS += (ImportError, SafetensorError, pickle.UnpicklingError)
"""What the model libraries let through for a config or a weights file that is wrong in one of many ways."""


@dataclass(frozen=True)
class Layout:
    """What a backend's folder must hold."""

    backend: str
    needs: tuple[str, ...]
    """File names or patterns, each of which must match a file."""

    def __str__(self) -> str:
        return ", ".join(self.needs).replace("*.safetensors", "model.safetensors")


def find_folder(model: str, layout: Layout) -> Path:
    """A folder, or `org/name` on the Hugging Face hub, fetched where it is not here yet. Raises PatinaError."""
    path = Path(model).expanduser()
    if not path.is_dir() and _like_a_path(model):
        raise PatinaError(f"{model}: no such folder; give a folder with {layout}")
    folder = path if path.is_dir() else _fetch(model, layout)
    missing = [pattern for pattern in layout.needs if not any(folder.glob(pattern))]
    if missing:
        raise PatinaError(f"{folder}: {' and '.join(missing)} is missing; the folder must hold {layout}")
    return folder


def _like_a_path(model: str) -> bool:
    """Whether it must be a mistyped folder: a typing error shall not set off a search of the network."""
    first, *rest = model.split("/")
    return model.startswith((".", "~", "/")) or len(rest) != 1 or Path(first).exists()


def _fetch(model: str, layout: Layout) -> Path:
    try:
        return Path(snapshot_download(model, allow_patterns=list(FETCHED)))
    except NOT_FETCHED as error:
        folder = f"models/{model.rpartition('/')[2]}"
        raise PatinaError(
            f"{model}: not on this machine, and it could not be fetched ({shortened(error)}). Where there is a "
            f"network: hf download {model} --local-dir {folder}; then --backend {layout.backend}={folder}. "
            f"The folder must hold {layout}"
        ) from error


def shortened(error: Exception) -> str:
    """What a library said, in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300].rstrip(". ")


def fingerprint(settings: str, weights: Mapping[str, Tensor]) -> str:
    """Twelve hex digits of the settings and of the beginning of every weight."""
    digest = hashlib.sha256(settings.encode())
    for name, weight in weights.items():
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(weight.flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]
