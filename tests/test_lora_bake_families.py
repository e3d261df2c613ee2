"""A base with a LoRA baked in draws what it draws with the LoRA on it: every family, as a single file and a folder."""

from pathlib import Path
from typing import NamedTuple

import ldm
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from toolbox import load_tool

from patina.bases.find import find_base
from patina.bases.load import load_pipeline
from patina.families import FAMILIES
from patina.family import narrow
from patina.lora import inject
from patina.lora.basefile import open_base
from patina.lora.blocks import LAYOUTS, layers
from patina.lora.file import write
from patina.lora.names import Place
from patina.lora.pack import packed
from patina.lora.recipe import Algo, Recipe

lora = load_tool("lora").main

WHOLE: tuple[Algo, ...] = ("locon", "dora")
"""What is baked where convolutions are adapted, too."""


class World(NamedTuple):
    """A family's tiny base as a folder, which single files are read by, and as a single file."""

    name: str
    folder: Path
    file: Path


@pytest.fixture(scope="module", params=FAMILIES)
def world(request, tmp_path_factory) -> World:
    place = tmp_path_factory.mktemp(request.param)
    pipe = tiny.PIPELINES[request.param]()
    pipe.save_pretrained(place / request.param)
    weights = {name: weight.contiguous().clone() for name, weight in ldm.checkpoint(pipe).items()}
    save_file(weights, place / "base.safetensors")
    return World(request.param, place / request.param, place / "base.safetensors")


def adapted(name: str, pipe, algo: Algo) -> dict[str, torch.nn.Module]:
    """All that the algorithm adapts, its weights moved by noise."""
    modules, generator = {}, torch.Generator().manual_seed(3)
    for component, ends in narrow(FAMILIES[name], "full", convolutions=algo in WHOLE).items():
        modules[component] = getattr(pipe, component)
        inject.adapt(modules[component], ends, tiny.RANK, tiny.ALPHA, 0, Recipe(algo))
        for adapter in inject.adapters(modules[component]).values():
            for weight in adapter.weights.values():
                weight.data += 0.05 * torch.randn(weight.shape, generator=generator)
    return modules


@pytest.mark.parametrize("algo", ["lora", "locon", "dora"])
def test_baked_it_draws_as_with_the_lora_on_it(world, tmp_path, algo):
    """Drawn by diffusers from the folder, and by our loader, through diffusers' converters, from the single file."""
    family, live = FAMILIES[world.name], tiny.PIPELINES[world.name]()
    plain = tiny.outputs(family, live)
    state = packed(adapted(world.name, live, algo), tiny.ALPHA)
    write(tmp_path / "a.safetensors", state, family, tiny.ALPHA, torch.float32, family.metadata)
    expected = tiny.outputs(family, live)
    for base, name in ((world.folder, "folder"), (world.file, "file.safetensors")):
        assert lora(["bake", str(base), str(tmp_path / "a.safetensors"), "--output", str(tmp_path / name)]) == 0
        found = find_base(str(tmp_path / name))
        pipe = load_pipeline(found, torch.float32, torch.device("cpu"), layouts=world.folder.parent)
        for one, other, base_alone in zip(tiny.outputs(family, pipe), expected, plain, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)  # products in fp32, in another order
            assert (one - base_alone).abs().max() > 0.02
    untouched(world, tmp_path, {key.rpartition(".")[0] for key in state})


def untouched(world: World, baked: Path, layers_: set[str]) -> None:
    """All but the LoRA's layers is the base's bit for bit: VAE, norms, embeddings, OpenCLIP's last layer."""
    slots = open_base(world.file).slots
    changed = {slots[place(layer)].key for layer in layers_}
    before, after = load_file(world.file), load_file(baked / "file.safetensors")
    assert before.keys() == after.keys()
    assert {key for key in before if not torch.equal(before[key], after[key])} == changed
    for path in world.folder.rglob("*.safetensors"):
        before, after = load_file(path), load_file(baked / "folder" / path.relative_to(world.folder))
        component = path.parent.name
        touched = {key for key in before if not torch.equal(before[key], after[key])}
        ours = {layer.partition(".")[2] for layer in layers_ if layer.partition(".")[0] == component}
        assert touched == {f"{path}.weight" for path in ours}


def place(layer: str) -> Place:
    component, _, path = layer.partition(".")
    return Place(component, path.removeprefix("text_model."))


def test_each_layer_that_a_lora_may_change_has_its_place(world):
    """The weight there is the model's own, in OpenCLIP's fused queries, keys and values too."""
    pipe = tiny.PIPELINES[world.name]()
    weights = {
        place(f"{component}.{key.removesuffix('.weight')}"): weight
        for component in ("unet", *FAMILIES[world.name].text_encoders)
        for key, weight in getattr(pipe, component).state_dict().items()
    }
    known = {Place(component, path) for component, found in layers(LAYOUTS[world.name]).items() for path in found}
    for base in (open_base(world.folder), open_base(world.file)):
        assert base.family == world.name
        spare = base.slots.keys() - weights.keys()
        assert all(found.path.startswith("encoder.layers.23.") for found in spare)  # OpenCLIP's last in 2.x: never read
        assert base.slots.keys() - spare == known & weights.keys()
        for found in base.slots.keys() - spare:
            assert torch.equal(base.slots[found].weight(), weights[found]), found
            assert base.slots[found].shape() == weights[found].shape
