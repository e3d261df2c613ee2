"""WD taggers through timm: booru tags with their probabilities, for bases that were trained on such tags."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

from patina.caption.captioner import Caption
from patina.caption.weights import LOAD_ERRORS, Layout, find_folder, fingerprint, shortened
from patina.errors import PatinaError

DEFAULT = "SmilingWolf/wd-vit-tagger-v3"
LAYOUT = Layout("wd", ("config.json", "*.safetensors", "selected_tags.csv"))
GENERAL, CHARACTER = "0", "4"
"""The categories of selected_tags.csv that are written; 9 rates how suggestive a picture is."""

KAOMOJI = frozenset(
    "0_0 (o)_(o) +_+ +_- ._. <o>_<o> <|>_<|> =_= >_< 3_3 6_9 >_o @_@ ^_^ o_o u_u x_x |_| ||_||".split()  # noqa: SIM905
)
"""Tags whose underscore is a face, and not a space."""


@dataclass(frozen=True)
class _Tag:
    name: str
    category: str


@dataclass(frozen=True)
class _Loaded:
    model: nn.Module
    tags: tuple[_Tag, ...]
    facts: dict[str, Any]
    device: torch.device
    dtype: torch.dtype


class WdTagger:
    """Tags by a WD tagger (SmilingWolf), characters first, then the likeliest."""

    kind: Literal["caption", "tags"] = "tags"

    def __init__(self, model: str = "", *, general: float = 0.35, character: float = 0.85) -> None:
        self._source = model or DEFAULT
        self.name = f"WD tagger {self._source}"
        self._least = {CHARACTER: character, GENERAL: general}
        self._loaded: _Loaded | None = None

    def load(self, device: torch.device, dtype: torch.dtype) -> None:
        """Bring the weights to the device. Raises PatinaError where they are missing or do not fit the tags."""
        folder = find_folder(self._source, LAYOUT)
        try:
            # Without `pretrained` timm would give random weights for a folder, and without a word.
            model = timm.create_model(f"local-dir:{folder}", pretrained=True)
        except LOAD_ERRORS as error:
            raise PatinaError(
                f"{self.name}: cannot be loaded ({shortened(error)}); is it a whole tagger of timm?"
            ) from error
        tags = _read_tags(folder / "selected_tags.csv")
        if len(tags) != model.num_classes:
            raise PatinaError(
                f"{self.name}: {len(tags)} tags in selected_tags.csv, but the model has {model.num_classes}; "
                "take both files from the same place"
            )
        facts = cast(dict[str, Any], model.pretrained_cfg)
        self._loaded = _Loaded(model.eval().to(device, dtype), tags, facts, device, dtype)

    def prepare(self, image: Image.Image) -> Tensor:
        """One RGB picture to (3, side, side): on a white square, scaled, blue first, as the taggers were trained."""
        facts = self._ready().facts
        side = max(image.size)
        square = Image.new("RGB", (side, side), "white")
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        wanted = facts["input_size"][-1]
        pixels = pil_to_tensor(square.resize((wanted, wanted), Image.Resampling.BICUBIC)).float() / 255
        mean, std = (torch.tensor(facts[name]).view(3, 1, 1) for name in ("mean", "std"))
        return ((pixels - mean) / std).flip(0)

    def generate(self, batch: Sequence[Tensor]) -> list[Caption]:
        """The tags of each picture that reach their category's threshold, separated by commas."""
        loaded = self._ready()
        with torch.inference_mode():
            found = loaded.model(torch.stack(list(batch)).to(loaded.device, loaded.dtype)).float().sigmoid()
        return [self._caption(row) for row in found.tolist()]

    def fingerprint(self) -> str:
        """Twelve hex digits of the settings and of the beginning of every weight."""
        loaded = self._ready()
        return fingerprint(f"wd {loaded.dtype} {self._least}", loaded.model.state_dict())

    def _caption(self, found: Sequence[float]) -> Caption:
        pairs = list(zip(self._ready().tags, found, strict=True))
        tags: list[str] = []
        for category, least in self._least.items():
            chosen = [(tag.name, value) for tag, value in pairs if tag.category == category and value >= least]
            tags += [name for name, _ in sorted(chosen, key=lambda one: -one[1])]
        return Caption(", ".join(tags), truncated=False)

    def _ready(self) -> _Loaded:
        assert self._loaded is not None, "load() comes first"
        return self._loaded


def _read_tags(path: Path) -> tuple[_Tag, ...]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    if not rows or not {"name", "category"} <= rows[0].keys():
        raise PatinaError(f"{path}, line 1: the columns must be tag_id,name,category,count; fetch the file again")
    return tuple(_Tag(_spaced(row["name"]), row["category"]) for row in rows)


def _spaced(name: str) -> str:
    return name if name in KAOMOJI else name.replace("_", " ")
