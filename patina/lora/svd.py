"""The leading singular vectors of a matrix: a few quickly, or as many as a rank or a share asks for, exactly."""

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from patina.lora.delta import Thin

NOTHING = 1e-13
"""Of the largest squared singular value: below it a float64 eigenvalue is rounding."""
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

    def factors(self) -> Thin:
        """Their product as two, both with the root of each singular value: neither leaves fp16's range first."""
        root = self.values.sqrt()
        return Thin(self.left * root, root[:, None] * self.right)


class Keep(NamedTuple):
    """How much of a matrix is kept; one of the two is given."""

    rank: int | None = None
    energy: float | None = None
    """Share of the sum of squared singular values."""


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


def truncated(total: Thin | Tensor, keep: Keep) -> tuple[Thin, float, float]:
    """A matrix in float64 -> its best approximation of a rank; the squared norms of that and of the whole.

    Of thin factors only their QR triangles are decomposed; of a matrix the Gram matrix of its shorter side, whose
    eigenvectors give the exact projection at half the digits.
    """
    found, energies = _of_thin(total, keep) if isinstance(total, Thin) else _of_matrix(total, keep)
    return found.factors(), energies[: len(found.values)].sum().item(), energies.sum().item()


def _of_thin(total: Thin, keep: Keep) -> tuple[Leading, Tensor]:
    left, triangle = torch.linalg.qr(total.up)
    right, other = torch.linalg.qr(total.down.mT)
    u, values, v = torch.linalg.svd(triangle @ other.mT, full_matrices=False)
    rank = _rank(values.square(), keep)
    return Leading(left @ u[:, :rank], values[:rank], v[:rank] @ right.mT), values.square()


def _of_matrix(total: Tensor, keep: Keep) -> tuple[Leading, Tensor]:
    short = total if total.shape[0] <= total.shape[1] else total.mT
    energies, vectors = torch.linalg.eigh(short @ short.mT)
    energies, vectors = energies.flip(0).clamp(min=0), vectors.flip(1)
    rank = _rank(energies, keep)
    values, basis = energies[:rank].sqrt(), vectors[:, :rank]
    other = (basis.mT @ short) / values.clamp(min=1e-12 * max(values[0].item(), 1e-300))[:, None]
    return Leading(basis, values, other) if short is total else Leading(other.mT, values, basis.mT), energies


def _rank(energies: Tensor, keep: Keep) -> int:
    """How many singular values to keep, at least one; of those that are none but for rounding, none.

    `energies` are their squares, falling.
    """
    real = max(int((energies > NOTHING * energies[0]).sum()), 1)
    if keep.rank is not None:
        return min(keep.rank, real)
    assert keep.energy is not None
    sums = energies.cumsum(0)
    return min(int((sums < keep.energy * sums[-1]).sum()) + 1, real)
