"""Checkpoints: all that it takes to go on, in a folder that is complete or absent."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import Optimizer

from patina.errors import PatinaError
from patina.files import replacing_folder, require_room
from patina.tensors import save_tensors, size_of

FORMAT = 2
TENSORS, FACTS = "state.safetensors", "state.json"


class Checkpoint(NamedTuple):
    """What a run had at the end of a step; whatever follows from the config and the step is not in it."""

    step: int
    lora: dict[str, Tensor]
    """As `patina.lora.inject.state` gives it, fp32."""
    optimizer: dict[str, Tensor]
    """`<group>/<name>` -> tensor."""
    numbers: dict[str, Any]
    """The optimizer's plain numbers, the loss scale, and the run's settings that must not change."""


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write `folder/step-000100`: to a temporary name, then renamed.

    Raises PatinaError before anything is written where the disk has too little room, or OSError where it fails; what
    was there stays.
    """
    target = place(folder, checkpoint.step)
    tensors = {f"lora.{key}": tensor for key, tensor in checkpoint.lora.items()}
    tensors |= {f"optimizer.{key}": tensor for key, tensor in checkpoint.optimizer.items()}
    require_room(folder, size_of(tensors))
    facts = {"format": FORMAT, "step": checkpoint.step, **checkpoint.numbers}
    with replacing_folder(target) as part:  # the same step may be there, taken before going on from an earlier one
        # copies, because safetensors refuses one tensor under two names, as bitsandbytes' tables of 8-bit values are
        save_tensors({key: tensor.detach().to("cpu", copy=True) for key, tensor in tensors.items()}, part / TENSORS)
        (part / FACTS).write_text(json.dumps(facts, indent=1), encoding="utf-8")
    return target


def place(folder: Path, step: int) -> Path:
    """Where in `folder` the checkpoint of a step is."""
    return folder / f"step-{step:06d}"


def load(path: Path) -> Checkpoint:
    """Read a checkpoint folder. Raises PatinaError when it is not one, or is damaged."""
    try:
        facts = json.loads((path / FACTS).read_text(encoding="utf-8"))
        tensors = load_file(path / TENSORS)
    except (OSError, ValueError, SafetensorError) as error:
        raise PatinaError(f"{path}: not a whole checkpoint ({error}); resume from another, or start anew") from error
    if facts.pop("format") != FORMAT:
        raise PatinaError(f"{path}: written by another version of Patina; go on with that version, or start anew")
    step = facts.pop("step")
    return Checkpoint(step, _under("lora.", tensors), _under("optimizer.", tensors), facts)


def newest(folder: Path) -> Path | None:
    """The checkpoint of the highest step in `folder`, None where there is none."""
    complete = [path for path in folder.glob("step-*") if (path / FACTS).is_file()]
    return max(complete, key=lambda path: int(path.name.removeprefix("step-")), default=None)


def optimizer_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as tensors and plain numbers, both by `<group>/<name>`; `set_optimizer_state` undoes it."""
    entries = dict(_leaves(optimizer.state_dict()["state"], ""))
    tensors = {path: value for path, value in entries.items() if isinstance(value, Tensor)}
    return tensors, {path: value for path, value in entries.items() if path not in tensors}


def set_optimizer_state(optimizer: Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
    """Put back what `optimizer_state` gave."""
    state: dict[Any, Any] = {}
    for path, value in {**tensors, **numbers}.items():
        index, *names, last = path.split("/")
        node = state.setdefault(int(index), {})
        for name in names:
            node = node.setdefault(name, {})
        node[last] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Walk nested dictionaries: bitsandbytes keeps its quantised moments one level deeper than torch."""
    if not isinstance(node, dict):
        yield path.removeprefix("/"), node
        return
    for name, value in node.items():
        yield from _leaves(value, f"{path}/{name}")


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
