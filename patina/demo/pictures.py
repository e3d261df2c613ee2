"""Rendering many scenes with all processors, kept in a work folder so that parts of a build share them."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from patina.demo.styles import draw
from patina.demo.world import Scene, scenes

SIDE = 128
"""Width and height in pixels at which the embedded models were trained."""


def render(pairs: Sequence[tuple[Scene, str]], cache: Path | None = None) -> np.ndarray:
    """Pictures of (scene, style) pairs as uint8 [N, SIDE, SIDE, 3]; read from `cache` where it is there."""
    if cache is not None and cache.is_file():
        return np.load(cache, mmap_mode="r")
    with ProcessPoolExecutor() as workers:
        drawn = workers.map(_pixels, pairs, chunksize=64)
        pixels = np.stack(list(tqdm(drawn, total=len(pairs), desc="drawing", mininterval=5)))
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.save(cache, pixels)
    return pixels


def gallery(count: int, seed: int, styles: Sequence[str], work: Path) -> tuple[list[Scene], np.ndarray]:
    """`count` scenes in every one of the styles: the scenes repeated style by style, and their pictures."""
    pairs = [(scene, style) for style, scene in product(styles, scenes(count, seed))]
    pixels = render(pairs, work / f"{'-'.join(styles)}-{count}-{seed}.npy")
    return [scene for scene, _ in pairs], pixels


def to_tensor(pixels: np.ndarray | Tensor) -> Tensor:
    """uint8 [N, H, W, 3] to float [N, 3, H, W] from -1 to 1."""
    values = pixels if isinstance(pixels, Tensor) else torch.from_numpy(np.ascontiguousarray(pixels))
    return values.permute(0, 3, 1, 2).float() / 127.5 - 1


def _pixels(pair: tuple[Scene, str]) -> np.ndarray:
    scene, style = pair
    return np.asarray(draw(scene, style, (SIDE, SIDE)))
