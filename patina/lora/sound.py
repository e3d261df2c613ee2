"""Reading a LoRA file that is to be worked on: what holds NaN is refused before it spreads."""

from pathlib import Path

from patina.errors import PatinaError
from patina.lora.foreign import AnyLora, read_any


def read_sound(path: Path) -> AnyLora:
    """`read_any`, which says what it raises for; PatinaError, too, where a known layer's numbers are not finite."""
    lora = read_any(path)
    for place, change in lora.changes.items():
        for part, tensor in change.parts.items():
            if not tensor.isfinite().all():
                raise PatinaError(
                    f"{path}: {lora.names[place]}.{part} holds NaN or infinity; give an earlier save of this LoRA"
                )
    return lora
