"""The numbers a run computes in, by what the device can do."""

from dataclasses import dataclass
from typing import Literal

import torch

from patina.errors import PatinaError

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Precision:
    """Device and dtype of the forward pass; LoRA masters, loss and optimizer are fp32 whatever it is."""

    device: torch.device
    dtype: torch.dtype
    note: str | None = None
    """One line for the user where this is not what was asked for."""

    @property
    def base(self) -> torch.dtype:
        """What the frozen weights are kept in: fp32 on a CPU, where half-precision products are slow."""
        return self.dtype if self.device.type == "cuda" else torch.float32

    @property
    def where(self) -> str:
        """For the user: `cuda in float16`."""
        return f"{self.device.type} in {str(self.dtype).removeprefix('torch.')}"

    def autocast(self, enabled: bool = True) -> torch.autocast:
        """The context that a forward pass runs in; casts are not kept, since a weight is used once in each pass."""
        enabled = enabled and self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype, enabled=enabled, cache_enabled=False)


def choose_device(wanted: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """`auto`: CUDA where there is a GPU, else the CPU. Raises PatinaError for a GPU that is not there."""
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise PatinaError(
            "device cuda was asked for, but torch finds no CUDA GPU; write engine.device: auto, or --device cpu"
        )
    return torch.device("cuda" if available and wanted != "cpu" else "cpu")


def choose_precision(wanted: Literal["fp16", "bf16", "fp32"], device: torch.device) -> Precision:
    """What was asked for where the device has it; else the nearest, with a note."""
    if device.type == "cpu" and wanted == "fp16":
        note = "mixed_precision: fp16 needs a GPU; on this CPU the run computes in fp32 instead"
        return Precision(device, torch.float32, note)
    if device.type == "cuda" and wanted == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return Precision(
            device, torch.float16, "mixed_precision: this GPU has no bf16; the run computes in fp16 instead"
        )
    return Precision(device, DTYPES[wanted])
