"""A frozen model shared out over processes: each keeps its part of every layer, and borrows the rest for a moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from patina.errors import PatinaError
from patina.lora import inject
from patina.text.checkpointing import checkpoints

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def shard(model: PreTrainedModel, team: Accelerator) -> str:
    """Keep of each layer's frozen weights what falls to this process, on its device, and put all else there whole.

    Returns what to say of it.

    FSDP2 (Zhao et al. 2023, arXiv:2304.11277) gathers a layer when it is computed, and again on the way back. The
    adapters stay whole in every process, so that gradients, optimizer and files are those of a run without this.
    Every process must compute the model as often as the others. Raises PatinaError where there is nothing to share.
    """
    if team.num_processes == 1:
        raise PatinaError(
            "engine.shard: one process has nobody to share the model with; start it with accelerate launch "
            "--num_processes 2 train.py ..., or leave it out"
        )
    if not checkpoints(model):
        raise PatinaError(f"engine.shard: {type(model).__name__} has no layers that can be shared out; leave it out")
    mesh = init_device_mesh(team.device.type, (team.num_processes,))
    mine = {weight for adapter in inject.adapters(model).values() for weight in adapter.weights.values()}
    for weight in mine:
        weight.data = weight.data.to(team.device)
    for layer in checkpoints(model):
        fully_shard(layer, mesh=mesh, ignored_params=mine)
    model.to(team.device)  # pyright: ignore[reportArgumentType]
    weights = list(model.parameters())
    kept = sum(weight.to_local().nbytes if isinstance(weight, DTensor) else weight.nbytes for weight in weights)
    whole = sum(weight.nbytes for weight in weights)
    return f"engine.shard: each process keeps {kept / whole:.0%} of the model, {kept / 2**20:,.1f} MiB"
