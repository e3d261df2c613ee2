"""Reading a LoRA file that is to be worked on: what holds NaN is refused before it spreads."""

from collections.abc import Iterator
from pathlib import Path

from patina.errors import PatinaError
from patina.lora.foreign import AnyLora, read_any


def read_sound(path: Path) -> AnyLora:
    """`read_any`, which says what it raises for; PatinaError, too, where a known layer's numbers are not finite."""
    lora = read_any(path)
    for name in broken(lora):
        raise PatinaError(f"{path}: {name} holds NaN or infinity; give an earlier save of this LoRA")
    return lora


def broken(lora: AnyLora) -> Iterator[str]:
    """The names, in the file, of known layers' tensors that hold numbers which are not finite."""
    for place, change in lora.changes.items():
        for part, tensor in change.parts.items():
            if not tensor.isfinite().all():
                yield f"{lora.names[place]}.{part}"
