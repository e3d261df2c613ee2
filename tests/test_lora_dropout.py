"""Dropout in adapters: where gradients flow and nowhere else, decided by the place in the data alone."""

import pytest
import tiny
import torch
from torch import nn

from patina.lora import dropout, inject
from patina.lora.recipe import Recipe

RECIPES = {
    "inputs": Recipe(dropout=0.3),
    "ranks": Recipe(rank_dropout=0.4),
    "layers": Recipe(module_dropout=0.4),
    "dora": Recipe("dora", dropout=0.1, rank_dropout=0.1, module_dropout=0.1),
    "loha": Recipe("loha", rank_dropout=0.2, module_dropout=0.2),
    "lokr": Recipe("lokr", rank_dropout=0.2, module_dropout=0.2),
}


class Answering(nn.Module):
    """A task that gives the tiny text encoder's answer to a batch."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.text = tiny.sd15().text_encoder
        inject.adapt(self.text, ("q_proj", "k_proj", "v_proj", "out_proj", "mlp.fc1"), 4, 8.0, 0, recipe)
        generator = torch.Generator().manual_seed(1)
        for adapter in inject.adapters(self.text).values():
            for weight in adapter.weights.values():
                weight.data += 0.2 * torch.randn(weight.shape, generator=generator)
        dropout.place_in_step(self, seed=3)

    def forward(self, batch) -> torch.Tensor:
        return self.text(torch.tensor([[49406, 320, 900, 49407]] * 3)).last_hidden_state


def batch(epoch: int, *places: int) -> dict[str, object]:
    return {"epoch": epoch, "places": places}


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_dropped_is_a_function_of_place(name):
    task, again = Answering(RECIPES[name]), Answering(RECIPES[name])
    first, other, later = (task(where).detach() for where in (batch(0, 1, 2), batch(0, 3, 4), batch(1, 1, 2)))
    torch.manual_seed(999)
    assert torch.equal(again(batch(0, 1, 2)).detach(), first)
    assert not torch.equal(first, other)
    assert not torch.equal(first, later)


@pytest.mark.parametrize("name", RECIPES)
def test_without_gradients_nothing_is_dropped(name):
    whole, task = Answering(Recipe(RECIPES[name].algo)), Answering(RECIPES[name])
    task(batch(0, 1)).sum().backward()
    with torch.no_grad():
        assert torch.equal(task(batch(0, 1)), whole(batch(0, 1)))
    assert not torch.equal(task(batch(0, 1)), whole(batch(0, 1)))
    assert not any(module.training for module in task.text.modules() if isinstance(module, nn.LayerNorm))


def test_shares_are_what_was_asked_for_and_the_mean_is_kept():
    layer = nn.ModuleDict({"to_q": nn.Linear(8, 8, bias=False)})
    inject.adapt(layer, ("to_q",), 1000, 1000.0, 0, Recipe(rank_dropout=0.25))
    down = layer.get_submodule("to_q").get_submodule("lora_A.default")
    plain = nn.functional.linear(torch.ones(2, 5, 8), down.weight)
    torch.manual_seed(0)
    dropped = down(torch.ones(2, 5, 8))
    zero = (dropped == 0).float()
    assert zero.mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(zero[:, :1].expand_as(zero), zero)  # a rank is out for a whole picture
    assert not torch.equal(zero[0], zero[1])
    torch.testing.assert_close(dropped, plain * (1 - zero) / 0.75)


def test_checkpointed_activations_are_computed_again_with_the_same_dropped():
    gradients = []
    for checkpointing in (False, True):
        task = Answering(Recipe(dropout=0.2, rank_dropout=0.2, module_dropout=0.2))
        if checkpointing:
            task.text.activation_checkpointing_enable()
            task.text.train()  # transformers checkpoints in train mode alone; the tiny encoder has no dropout itself
        task(batch(0, 1)).square().sum().backward()
        gradients.append([adapter.A.grad for adapter in inject.adapters(task.text).values()])
    assert all(grad.any() for grad in gradients[0][1:2])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again, rtol=1e-5, atol=1e-6)
