"""Several processes label one folder: each takes its share of the pictures, and the first joins what they wrote."""

from __future__ import annotations

import os
from typing import Literal, NamedTuple


class Crew(NamedTuple):
    """This process among those that a launcher started; every process waits as often as the others."""

    rank: int = 0
    size: int = 1

    def wait(self) -> None:
        """Until all are here. Raises PatinaError when one of them is gone."""
        if self.size > 1:
            from patina.engine.team import meet  # deferred: torch is slow to import

            meet()


ALONE = Crew()


def crew(device: Literal["auto", "cpu", "cuda"]) -> Crew:
    """What torch's launchers have put into the environment; on GPUs each process then has one of its own."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return ALONE
    from accelerate import PartialState  # deferred: slow to import

    from patina.engine.precision import choose_device
    from patina.engine.team import PATIENCE

    state = PartialState(cpu=choose_device(device).type == "cpu", timeout=PATIENCE)
    return Crew(state.process_index, state.num_processes)
