"""Batches of alike pictures for a captioner, and smaller ones where the memory does not hold them."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from patina.caption.captioner import Caption, Captioner
from patina.data.images import ImageError
from patina.errors import PatinaError


def batches(
    stream: Iterable[tuple[Path, Future[Any]]],
    size: int,
    alike: Callable[[Any], int],
    unreadable: Callable[[Path, ImageError], None],
) -> Iterator[list[tuple[Path, Any]]]:
    """Group what was read, alike with alike; what could not be read is reported instead."""
    waiting: defaultdict[int, list[tuple[Path, Any]]] = defaultdict(list)
    for path, future in stream:
        try:
            prepared = future.result()
        except ImageError as error:
            unreadable(path, error)
            continue
        group = waiting[alike(prepared)]
        group.append((path, prepared))
        if len(group) == size:
            yield group
            waiting.pop(alike(prepared))
    yield from waiting.values()


class Halving:
    """Generates in pieces that fit: on running out of memory half as many at a time, from then on."""

    def __init__(self, captioner: Captioner, most: int) -> None:
        self._captioner, self.most = captioner, most

    def generate(self, prepared: list[Any]) -> list[Caption]:
        """A caption each, in order. Raises PatinaError where not even one picture fits."""
        written: list[Caption] = []
        while len(written) < len(prepared):
            try:
                written += self._captioner.generate(prepared[len(written) : len(written) + self.most])
            except RuntimeError as error:
                self._halve(error)
        return written

    def _halve(self, error: RuntimeError) -> None:
        import torch  # deferred: slow to import, and not every backend computes

        if not isinstance(error, torch.OutOfMemoryError):
            raise error
        if self.most == 1:
            raise PatinaError(
                f"{self._captioner.name}: not even one picture fits the GPU's memory; "
                "use a smaller model, --quantize 4bit, or --device cpu"
            ) from error
        self.most //= 2
        torch.cuda.empty_cache()
