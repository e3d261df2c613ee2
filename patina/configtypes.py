"""The types that a config's keys may have, and what its sections have in common."""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _home(path: str) -> str:
    return os.path.expanduser(path)


Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Edge = Annotated[int, Field(ge=64, multiple_of=8)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[tuple[Text, ...], Field(strict=False)]
Place = Annotated[str, Field(min_length=1), AfterValidator(_home)]
Places = Annotated[tuple[Place, ...], Field(strict=False)]
Folder = Annotated[Path, AfterValidator(lambda path: Path(_home(str(path))))]
Precision = Literal["fp16", "bf16", "fp32"]


class Section(BaseModel):
    """What all parts of a config share: exact types, no unknown keys, never changed once made."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )
