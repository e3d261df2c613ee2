"""The leading singular vectors of a matrix, without the rest of them."""

from typing import NamedTuple

import torch
from torch import Generator, Tensor

SPARE, ROUNDS = 8, 4
"""Directions looked for beyond the rank, and times that they are turned towards the leading ones."""


class Leading(NamedTuple):
    """The largest singular values of a matrix [m,n], at most `rank` of them, with their vectors."""

    left: Tensor
    """[m,r]."""
    values: Tensor
    """[r], falling."""
    right: Tensor
    """[r,n]."""


def leading(matrix: Tensor, rank: int, generator: Generator) -> Leading:
    """The first `rank` singular vectors (or all, where there are fewer), in the matrix's dtype and on its device.

    Subspace iteration from a random start (Halko et al. 2011, arXiv:0909.4061, algorithm 4.4), which is exact where
    the matrix has no more than rank + SPARE singular values above zero. As `torch.svd_lowrank`, which draws from the
    global generator.
    """
    width = min(rank + SPARE, *matrix.shape)
    sketch = torch.randn(matrix.shape[1], width, generator=generator, dtype=matrix.dtype).to(matrix.device)
    for _ in range(ROUNDS):
        sketch = torch.linalg.qr(matrix @ sketch).Q
        sketch = torch.linalg.qr(matrix.mT @ sketch).Q
    left, values, right = torch.linalg.svd(matrix @ sketch, full_matrices=False)
    return Leading(left[:, :rank], values[:rank], (right @ sketch.mT)[:rank])
