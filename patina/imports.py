"""Importing torch and what stands on it in less time, for commands whose users wait for it."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def swift_imports() -> Iterator[None]:
    """Inside, heavy libraries are imported in about two thirds of the time; for a command's own process.

    bitsandbytes hands functions to `torch.compile` as it is imported, which brings in a compiler that nothing here
    runs: without one they stay as they are. The garbage collector stands still, and what was imported, which never is
    garbage, is kept out of its later rounds too: they would walk through all of it time and again.
    """
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
