"""What a run does where memory runs out: it computes in less of it, a rung at a time, and no step is lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from patina.engine.capture import CapturedStep
from patina.engine.memory import ran_out
from patina.errors import PatinaError
from patina.task import Batch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from patina.engine.step import EagerStep
    from patina.engine.update import Outcome

ROOM = 6
"""Tensors as long as the weights that an update may need at once: AdamW's two moments, what an overflow would put back
(the weights and both moments), and one for the arithmetic."""

RECOMPUTED = "gradient checkpointing is on from here: about a third slower, the numbers the same"
"""What a rung says that computes activations twice instead of keeping them."""


class Rung(NamedTuple):
    """One way of computing the same in less memory."""

    says: str
    take: Callable[[], object]


class Ladder:
    """As the step that it holds; one that runs out of memory goes down a rung and is computed anew from its start.

    After the rungs given, batches are computed in parts: halves, quarters, down to a row at a time; then comes `last`.
    """

    def __init__(
        self,
        step: EagerStep | CapturedStep,
        rungs: Sequence[Rung] | None,
        advice: str,
        say: Callable[[str], None],
        begin_anew: Callable[[], object],
        end: Callable[[], object],
        last: Rung | None = None,
    ) -> None:
        """`rungs` None: there is no way down. `advice`: what a user can write where nothing is left.

        `begin_anew` is called where what has been computed of a step is forgotten, `end` where it was the whole of it.
        """
        self.step, self.eager = step, step.eager if isinstance(step, CapturedStep) else step
        self.optimizer, self.scaler = step.optimizer, step.scaler
        self.taken: list[str] = []
        """What was done so far to need less, for the user."""
        self._rungs, self._last = None if rungs is None else list(rungs), last
        self._advice, self._say, self._begin_anew, self._end = advice, say, begin_anew, end
        self._added: list[tuple[Batch, int]] = []

    @property
    def device(self) -> torch.device:
        """Where steps are computed."""
        return self.eager.precision.device

    def add(self, batch: Batch, terms: int) -> None:
        """As `EagerStep.add`. Raises PatinaError where the batch fits on no rung."""
        self._added.append((batch, terms))
        failed = self._failing(self._added[-1:])
        while failed is not None:
            self._go_down(failed)
            failed = self._failing(self._added)

    def update(self, rates: Mapping[str, float]) -> Outcome:
        """As `EagerStep.update`."""
        self._added.clear()
        self._end()
        return self.step.update(rates)

    def look_ahead(self, batch: Batch) -> None:
        """Go down to where `batch` fits, with room left for the update; all else is afterwards as it was before.

        Between two steps alone. What the step records of this batch's shape is kept. Raises PatinaError as `add`.
        """
        if self._rungs is None:
            return
        room = [torch.empty_like(flat) for flat in self.eager.flats.values() for _ in range(ROOM)]
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            for _ in range(self.step.passes):
                self.add(batch, self.eager.task.count(batch))
        del room
        self._added.clear()
        self.eager.clear()
        self._begin_anew()

    def release(self) -> None:
        """Give back the memory that is kept for steps to come."""
        self.step.release()

    def _failing(self, added: Sequence[tuple[Batch, int]]) -> Batch | None:
        """Compute the batches; the one at which memory ran out, or None. Once it returns nothing holds what it made."""
        for batch, terms in added:
            try:
                self.step.add(batch, terms)
            except RuntimeError as error:
                if not ran_out(error):
                    raise
                return batch
        return None

    def _go_down(self, failed: Batch) -> None:
        rung = self._next(failed)
        self._say(f"engine: out of memory; {rung.says}")
        rung.take()
        self.step.release()  # first, since it waits for what is being added to the gradients on the side
        self.eager.clear()
        self._begin_anew()
        self.taken.append(rung.says)

    def _next(self, failed: Batch) -> Rung:
        if self._rungs is None:
            raise PatinaError(f"a step runs out of memory; write engine.memory: auto, or {self._advice}")
        if self._rungs:
            return self._rungs.pop(0)
        rows = len(self.eager.task.split(self.eager.task.prepare(failed), 1))
        at_a_time = min(rows, self.eager.most or rows)
        if at_a_time == 1 and self._last:
            rung, self._last = self._last, None
            return rung
        if at_a_time == 1:
            tried = "; ".join(self.taken) or "it is one row at a time"
            raise PatinaError(f"a step runs out of memory, although {tried}; write {self._advice}")
        return self._in_parts((at_a_time + 1) // 2)

    def _in_parts(self, most: int) -> Rung:
        def take() -> None:
            self.eager.most = most

        return Rung(f"batches are computed in parts of {most}, which add up to the same", take)
