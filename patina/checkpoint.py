"""Checkpoints: all that it takes to go on, in a folder that is complete or absent."""

import json
from collections.abc import Callable, Iterator, Mapping
from json import JSONDecodeError
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import Optimizer

from patina import manifest
from patina.errors import PatinaError
from patina.files import remove_folder, replacing_folder, require_room
from patina.tensors import save_tensors, size_of

FORMAT = 3
KNOWN = (2, 3)
LISTED = 3
"""The first format whose folders list their files with sizes and digests."""
PARTS = ("lora", "optimizer", "best", "average")
"""What the names of a checkpoint's tensors begin with."""
TENSORS, FACTS = "state.safetensors", "state.json"
DAMAGE = (OSError, KeyError, TypeError, AttributeError, SafetensorError, UnicodeDecodeError, JSONDecodeError)
"""What reading a folder raises that is not what was written."""


class Damaged(PatinaError):
    """A checkpoint that is not what was written."""


class Checkpoint(NamedTuple):
    """What a run had at the end of a step; whatever follows from the config and the step is not in it."""

    step: int
    lora: dict[str, Tensor]
    """As `patina.lora.inject.state` gives it, fp32."""
    optimizer: dict[str, Tensor]
    """`<group>/<name>` -> tensor."""
    numbers: dict[str, Any]
    """The optimizer's plain numbers, the loss scale, and the run's settings that must not change."""
    best: Mapping[str, Tensor] = {}
    """The adapter's state that was measured to be the best so far; empty where nothing waits for one."""
    average: Mapping[str, Tensor] = {}
    """The adapter's averaged state, likewise; empty where none is kept."""


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write `folder/step-000100`: to a temporary name, then renamed.

    Raises PatinaError before anything is written where the disk has too little room, or OSError where it fails; what
    was there stays.
    """
    target = place(folder, checkpoint.step)
    tensors = {f"lora.{key}": tensor for key, tensor in checkpoint.lora.items()}
    tensors |= {f"optimizer.{key}": tensor for key, tensor in checkpoint.optimizer.items()}
    tensors |= {f"best.{key}": tensor for key, tensor in checkpoint.best.items()}
    tensors |= {f"average.{key}": tensor for key, tensor in checkpoint.average.items()}
    require_room(folder, size_of(tensors))
    facts = {"format": FORMAT, "step": checkpoint.step, **checkpoint.numbers}
    with replacing_folder(target) as part:  # the same step may be there, taken before going on from an earlier one
        # copies, because safetensors refuses one tensor under two names, as bitsandbytes' tables of 8-bit values are
        save_tensors({key: tensor.detach().to("cpu", copy=True) for key, tensor in tensors.items()}, part / TENSORS)
        (part / FACTS).write_text(json.dumps(facts, indent=1), encoding="utf-8")
        manifest.write(part, (TENSORS, FACTS))
    return target


def place(folder: Path, step: int) -> Path:
    """Where in `folder` the checkpoint of a step is."""
    return folder / f"step-{step:06d}"


def load(path: Path) -> Checkpoint:
    """Read a checkpoint folder. Raises Damaged when it is not whole, PatinaError when another version wrote it."""
    try:
        facts = json.loads((path / FACTS).read_text(encoding="utf-8"))
        if facts["format"] not in KNOWN:
            raise PatinaError(
                f"{path}: written by another version of Patina (format {facts['format']}, and this one reads "
                f"{' and '.join(map(str, KNOWN))}); go on with that version, or start anew"
            )
        if facts.pop("format") >= LISTED:
            manifest.compare(path)
        tensors = load_file(path / TENSORS)
        step = facts.pop("step")
    except (
        OSError,
        KeyError,
        TypeError,
        AttributeError,
        SafetensorError,
        UnicodeDecodeError,
        JSONDecodeError,
    ) as error:
        raise Damaged(f"{path}: not a whole checkpoint ({error}); resume from another, or start anew") from error
    lora, optimizer, best, average = (_under(f"{part}.", tensors) for part in PARTS)
    return Checkpoint(step, lora, optimizer, facts, best, average)


def newest(folder: Path) -> Path | None:
    """The checkpoint of the highest step in `folder`, None where there is none; it may be damaged."""
    return next(iter(_newest_first(folder)), None)


def newest_whole(folder: Path, say: Callable[[str], object]) -> Path | None:
    """The checkpoint of the highest step that is whole, None where there is none at all; `say` is told of the damaged.

    Raises PatinaError where all are damaged: to start anew then would write over them.
    """
    paths = _newest_first(folder)
    for path in paths:
        try:
            load(path)
        except Damaged as error:
            say(f"{error}: looking for an earlier one")
            continue
        return path
    if paths:
        raise PatinaError(f"{folder}: no checkpoint is whole; train anew in another output_dir")
    return None


def thin(folder: Path, step: int, keep: int) -> None:
    """Remove the checkpoints in `folder` up to that of `step`, but for the newest `keep` of them.

    Those of later steps, which a run may have left before it went on from an earlier one, are not touched.
    """
    passed = [path for path in _newest_first(folder) if _step(path) <= step]
    for path in passed[keep:]:
        remove_folder(path)


def _newest_first(folder: Path) -> list[Path]:
    whole = [path for path in folder.glob("step-*") if (path / FACTS).is_file() and _digits(path).isdecimal()]
    return sorted(whole, key=_step, reverse=True)


def _step(path: Path) -> int:
    return int(_digits(path))


def _digits(path: Path) -> str:
    return path.name.removeprefix("step-")


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
