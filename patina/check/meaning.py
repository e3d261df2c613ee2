"""Pictures that show nearly the same, though no pixel need agree: told apart by a CoCa's own numbers for them."""

from collections.abc import Collection, Sequence
from contextlib import closing
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from patina.check.findings import WARNING, Finding
from patina.data.ahead import ahead
from patina.data.images import open_image

SAME = 0.95
"""Cosine from which two pictures are said to show the same: chosen to err towards silence, for ViT-L."""
BATCH = 16
BLOCK = 1024
"""Pictures compared with all earlier ones at a time."""


class Embedder(Protocol):
    """Who makes numbers of pictures; `patina.caption.coca.CocaCaptioner` does."""

    def prepare(self, image: Image.Image) -> Tensor: ...

    def embed(self, batch: Sequence[Tensor]) -> Tensor:
        """Prepared pictures to (N, width) fp32, each of length one."""
        ...


def meaning_findings(
    paths: Sequence[Path], folder: Path, embedder: Embedder, known: Collection[str], workers: int = 2
) -> list[Finding]:
    """Each picture that shows nearly what an earlier one does, but for the names `known`; all must be readable."""
    found = []
    for at, earlier, cosine in _same(_embedded(paths, embedder, workers)) if paths else ():
        name, other = (paths[index].relative_to(folder).as_posix() for index in (at, earlier))
        said = f"shows nearly what {other} shows (cosine {cosine:.2f}); keep the better one"
        if name not in known:
            found.append(Finding("same content", WARNING, name, said))
    return found


def _embedded(paths: Sequence[Path], embedder: Embedder, workers: int) -> Tensor:
    parts, batch = [], []
    with closing(ahead(lambda path: embedder.prepare(open_image(path)), paths, workers, 2 * BATCH)) as stream:
        for _, future in stream:
            batch.append(future.result())
            if len(batch) == BATCH:
                parts.append(embedder.embed(batch))
                batch = []
    return torch.cat([*parts, embedder.embed(batch)] if batch else parts)


def _same(numbers: Tensor) -> list[tuple[int, int, float]]:
    """(picture, the earlier one that it is most like, cosine), where that is SAME or more."""
    found = []
    for start in range(0, len(numbers), BLOCK):
        block = numbers[start : start + BLOCK]
        cosines = block @ numbers[: start + len(block)].T
        cosines = cosines.tril(start - 1)  # earlier ones alone
        best, at = cosines.max(1)
        places = (best >= SAME).nonzero().flatten().tolist()
        found += [(start + place, int(at[place]), float(best[place])) for place in places]
    return found
