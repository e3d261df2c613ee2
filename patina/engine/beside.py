"""What nothing in a backward pass waits for, on a stream of its own: small products run while large ones do.

The gradients of LoRA's factors are half of what a LoRA adds to a pass, and are read when the pass is over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

AT_ONCE = 64 * 2**20
"""Bytes read by jobs that are begun together: to begin and to end takes time, and what they read is kept until then."""


class _Beside:
    """The jobs of one backward pass, in the order in which they come."""

    def __init__(self) -> None:
        self._jobs: list[Callable[[], object]] = []
        self._begun: list[Callable[[], object]] = []
        """Held until they are done, with what they read: its memory would be given to others before."""
        self._bytes, self._done = 0, None

    def take(self, job: Callable[[], object], read: int) -> None:
        self._jobs.append(job)
        self._bytes += read
        if self._bytes >= AT_ONCE:
            self._begin()

    def join(self) -> None:
        """Have the current stream wait for all of them."""
        self._begin()
        self._wait()

    @torch.no_grad()  # at the end of a pass what the jobs read could be learned through
    def _begin(self) -> None:
        self._wait()
        side = _stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for job in self._jobs:
                job()
        self._done = side.record_event()
        self._begun, self._jobs, self._bytes = self._jobs, [], 0

    def _wait(self) -> None:
        if self._done is not None:
            torch.cuda.current_stream().wait_event(self._done)
        self._begun, self._done = [], None


_pass: _Beside | None = None
"""The pass that is going on; of the whole process, since autograd computes on a thread of its own."""


@contextmanager
def beside(device: torch.device) -> Iterator[None]:
    """For a backward pass: what `aside` is given is done on the side, and all of it at the end."""
    global _pass
    if device.type != "cuda":
        yield
        return
    _pass = _Beside()
    try:
        yield
        _pass.join()
    finally:
        _pass = None


def aside(job: Callable[[], object], *reads: Tensor) -> None:
    """Do a job of a backward pass that no other of it waits for; `reads`: the largest of what it holds and reads.

    Outside of `beside` it is done at once.
    """
    if _pass is None:
        job()
    else:
        _pass.take(job, sum(part.nbytes for part in reads))


@cache
def _stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()
