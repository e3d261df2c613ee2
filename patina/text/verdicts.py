"""How well labels are told apart: the confusion matrix, and the numbers that it comes to."""

from __future__ import annotations

import torch
from torch import Tensor


def confusion(labels: Tensor, chosen: Tensor, count: int) -> Tensor:
    """[count,count] int64: how many rows of the label (row) were held to be of the other (column), of [N] both."""
    return torch.bincount(labels * count + chosen, minlength=count * count).reshape(count, count)


def accuracy(matrix: Tensor) -> float:
    """Share of rows on the diagonal."""
    return float(matrix.trace() / matrix.sum())


def macro_f1(matrix: Tensor) -> float:
    """Mean over the labels of F1 = 2 TP / (2 TP + FP + FN), each counting alike however few rows it has.

    Labels that no row has and none was held to have are left out, as scikit-learn does.
    """
    seen = matrix.sum(0) + matrix.sum(1)
    return float((2 * matrix.diagonal() / seen)[seen > 0].mean())
