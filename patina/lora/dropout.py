"""Dropout in adapters alone: it acts where gradients are wanted, and what it drops is a function of place.

The base stays in eval mode, and previews draw without gradients, so that they see the whole adapter.
"""

import zlib

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from patina.lora.recipe import ADAPTER, Recipe


def attach(layer: nn.Module, recipe: Recipe, is_lora: bool) -> None:
    """Let a new adapter layer drop what the recipe says: a LoRA by hooks of ours, LoHa and LoKr by peft's own means."""
    if not is_lora:
        if recipe.rank_dropout or recipe.module_dropout:
            layer.register_forward_pre_hook(_train_where_gradients_flow)
        return
    assert isinstance(layer, LoraLayer)
    if recipe.dropout:
        layer.lora_dropout[ADAPTER].register_forward_pre_hook(_train_where_gradients_flow)
    if recipe.rank_dropout:
        layer.lora_A[ADAPTER].register_forward_hook(_dropping_ranks(recipe.rank_dropout))
    if recipe.module_dropout:
        layer.lora_B[ADAPTER].register_forward_hook(_dropping_all(recipe.module_dropout))


def place_in_step(task: nn.Module, seed: int) -> None:
    """Make torch's random numbers in each forward pass of `task` a function of (seed, epoch, places in the epoch).

    A resumed run then drops what the whole run would have. Nothing else here uses torch's global generator.
    """

    def seeded(_: nn.Module, inputs: tuple[dict, ...]) -> None:
        (batch,) = inputs
        torch.manual_seed(zlib.crc32(f"dropout {seed} {batch['epoch']} {list(batch['places'])}".encode()))

    task.register_forward_pre_hook(seeded)


def _train_where_gradients_flow(module: nn.Module, _: tuple[Tensor, ...]) -> None:
    module.training = torch.is_grad_enabled()


def _dropping_ranks(share: float):
    """[...,r] or [B,r,h,w] -> whole ranks of each picture zeroed, the others raised, as sd-scripts does."""

    def dropped(layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not torch.is_grad_enabled():
            return None
        axis = 1 if isinstance(layer, nn.Conv2d) else output.ndim - 1
        shape = [size if place in (0, axis) else 1 for place, size in enumerate(output.shape)]
        kept = torch.rand(shape, device=output.device) >= share
        return output * (kept / (1 - share)).to(output.dtype)

    return dropped


def _dropping_all(share: float):
    """The whole adapter of a layer left out for this pass, the others not raised, as sd-scripts does."""

    def dropped(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not torch.is_grad_enabled():
            return None
        return output * (torch.rand((), device=output.device) >= share).to(output.dtype)

    return dropped
