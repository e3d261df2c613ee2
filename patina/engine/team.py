"""What the processes of a team tell each other, over NCCL or gloo."""

from datetime import timedelta

import torch
from torch import Tensor

from patina.errors import PatinaError

PATIENCE = timedelta(hours=12)
"""How long a process waits for the others: one may fill a cache for all. Of one that is gone they hear at once."""
GONE = "another process of this run has ended, and this one cannot go on without it: look for what it said; "


def add_up(part: Tensor) -> None:
    """Replace `part` by its sum over all processes. Raises PatinaError when one of them is gone."""
    try:
        torch.distributed.all_reduce(part)
    except RuntimeError as error:
        raise PatinaError(f"{GONE}resume=auto goes on from the last checkpoint") from error


def meet() -> None:
    """Wait until all processes are here. Raises PatinaError when one of them is gone."""
    try:
        torch.distributed.barrier()
    except RuntimeError as error:
        raise PatinaError(f"{GONE}the same command goes on with the rest") from error
