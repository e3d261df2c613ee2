"""Runs that repeat themselves to the bit on a GPU, which else makes some sums in whatever order is fastest."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from patina.errors import PatinaError

WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
"""NVIDIA's word for products that repeat themselves; it is read when a process first takes one."""


@contextmanager
def repeatable(wanted: bool) -> Iterator[None]:
    """Inside, torch takes no kernel that does not repeat itself. Raises PatinaError where there is no other.

    Our own kernels add up within a program alone, and bitsandbytes' work number by number: they do in any case.
    """
    if not wanted:
        yield
        return
    os.environ.update([WORKSPACE])
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        what = str(error).partition(" does not have")[0][:100]
        raise PatinaError(
            f"engine.deterministic: torch has no way of computing {what} that repeats itself; write false"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
