"""Noticing that a driver moves the GPU's memory to the computer's own, as on Windows: no error, but very slow steps."""

from collections import deque
from collections.abc import Callable, Sequence
from statistics import median

FEWEST, REMEMBERED = 20, 100
"""Steps by which a slow one is told, at least and at most: the last ones."""
SLOWER = 5.0
"""How many times longer than their median it takes."""
FULL = 0.95
"""Share of the card's memory that is in use when there is nothing left to give."""


class Spill:
    """Says once that steps have become slow on a full card."""

    def __init__(self, card: Callable[[], tuple[int, int]], say: Callable[[str], None]) -> None:
        """`card`: bytes that are free on the GPU and bytes that it has, as `torch.cuda.mem_get_info` gives them."""
        self._card, self._say = card, say
        self._before: deque[float] = deque(maxlen=REMEMBERED)
        self._told = False

    def note(self, seconds: float) -> None:
        """Take note of what a step took; the card is asked only where that is suspicious."""
        if not self._told and slow(self._before, seconds) and full(*self._card()):
            self._told = True
            self._say(
                f"engine: a step took {seconds:.3g} s where {median(self._before):.3g} s is usual, and the GPU is "
                "full: its driver may be moving memory to the computer's own. If steps stay slow, close other "
                "programs, or write gradient_checkpointing: true or a smaller batch_size"
            )
        self._before.append(seconds)


def slow(before: Sequence[float], seconds: float) -> bool:
    """Whether a step takes far longer than those before it, of which there must be enough."""
    return len(before) >= FEWEST and seconds > SLOWER * median(before)


def full(free: int, total: int) -> bool:
    """Whether so many bytes of a card's total are as good as none."""
    return total - free > FULL * total
