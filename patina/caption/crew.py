"""Several processes label one folder: each takes its share of the pictures, and the first joins what they wrote."""

from __future__ import annotations

import os
from typing import NamedTuple

from accelerate import PartialState

from patina.engine.team import PATIENCE, meet


class Crew(NamedTuple):
    """This process among those that a launcher started; every process waits as often as the others."""

    rank: int = 0
    size: int = 1

    def wait(self) -> None:
        """Until all are here. Raises PatinaError when one of them is gone."""
        if self.size > 1:
            meet()


ALONE = Crew()


def crew(cpu: bool) -> Crew:
    """What torch's launchers have put into the environment; on GPUs each process then has one of its own."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return ALONE
    state = PartialState(cpu=cpu, timeout=PATIENCE)
    return Crew(state.process_index, state.num_processes)
