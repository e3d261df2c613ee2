"""What the processes of a team tell each other: sums, over NCCL or gloo."""

import torch
from torch import Tensor

from patina.errors import PatinaError


def add_up(part: Tensor) -> None:
    """Replace `part` by its sum over all processes. Raises PatinaError when one of them is gone."""
    try:
        torch.distributed.all_reduce(part)
    except RuntimeError as error:
        raise PatinaError(
            "another process of this run has ended, and this one cannot go on without it: look for what it said; "
            "resume=auto goes on from the last checkpoint"
        ) from error
