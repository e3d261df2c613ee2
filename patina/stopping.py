"""Stopping a run in good order: the first Ctrl-C or SIGTERM is a request, the second ends the process at once."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from accelerate import Accelerator

from patina.engine.arriving import Arriving
from patina.engine.team import add_up

SIGNALS = (signal.SIGINT, signal.SIGTERM)
FORWARDED = 1.0
"""Seconds in which a second signal is the first one again: launchers pass on what the terminal has told all alike."""


@contextmanager
def stopping(apart: float = 0.0) -> Iterator[Callable[[], bool]]:
    """Yield what says whether a signal has asked to stop. Takes no signal outside the main thread.

    A second signal, more than `apart` seconds after the first, raises KeyboardInterrupt or, for SIGTERM, SystemExit
    with 143. A signal that was ignored before, as in a shell's background job or under nohup, stays ignored.
    """
    asked_at: list[float] = []

    def hear(number: int, _: FrameType | None) -> None:
        if not asked_at:
            asked_at.append(time.monotonic())
        elif time.monotonic() - asked_at[0] >= apart:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    before = {number: signal.getsignal(number) for number in SIGNALS if _is_ours(number)}
    try:
        for number in before:
            signal.signal(number, hear)
        yield lambda: bool(asked_at)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_ours(number: signal.Signals) -> bool:
    """Python lets only the main thread set handlers, and cannot put back one that was not set from Python: None."""
    main = threading.current_thread() is threading.main_thread()
    return main and signal.getsignal(number) not in (signal.SIG_IGN, None)


class Agreement:
    """Whether any process of a team was asked to stop: all hear of it after the same step, or some would wait for ever.

    What is said after one step is heard after the next, when it has long arrived: nobody waits for a GPU.
    """

    def __init__(self, team: Accelerator) -> None:
        self._team = team
        self._said: Arriving | None = None

    def __call__(self, asked: bool) -> bool:
        """To be called by all after each step, with whether this process was asked."""
        if self._team.num_processes == 1:
            return asked
        heard = self._said is not None and self._said.read()[0] > 0
        flag = torch.full((1,), float(asked), device=self._team.device)
        add_up(flag)
        self._said = Arriving(flag)
        return heard
