"""Run by a test under `accelerate launch`: two processes agree to stop and share a gradient, which is written."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from patina.engine.flat import flatten
from patina.engine.precision import Precision
from patina.engine.step import EagerStep
from patina.stopping import Agreement
from tests.test_text_task import adapted, epoch


def main() -> None:
    team = Accelerator(cpu=True)
    assert team.num_processes == 2
    agreed = Agreement(team)
    assert not agreed(team.process_index == 1)
    assert agreed(asked=False)
    assert not agreed(asked=False)
    task, window = adapted(), epoch(2, 32)
    flats = flatten(task.adapted())
    optimizer = torch.optim.SGD(list(flats.values()), lr=0.0)

    def keep() -> None:  # where the optimizer's step would be
        if team.is_main_process:
            torch.save(flats["model"].grad, sys.argv[1])

    step = EagerStep(task, flats, optimizer, Precision(team.device, torch.float32), team, 0.0, advance=keep)
    terms = sum(task.count(batch) for batch in window)
    for batch in window[team.process_index :: team.num_processes]:  # as the loop shares a step's batches out
        step.add(batch, terms)
    step.update({"model": 0.0})
    team.end_training()


if __name__ == "__main__":
    main()
