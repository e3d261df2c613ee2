"""Every algorithm on the tiny SD1.5: what it trains, what its file says, and that the plain formula reads the same."""

from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from patina.errors import PatinaError
from patina.families import FAMILIES
from patina.family import Family, narrow
from patina.lora import file, inject
from patina.lora.blocks import sdxl_ldm
from patina.lora.pack import baked, packed
from patina.lora.recipe import Recipe, Size
from patina.lora.verify import verify

SD15 = FAMILIES["sd15"]
RANK, ALPHA = 4, 2.0
KERNEL = torch.nn.Conv2d


def sizes(path: str, layer: torch.nn.Module) -> Size | None:
    """A rank and scale of its own for kernels, and for one kind of layer, as patterns give them."""
    if isinstance(layer, KERNEL) and layer.kernel_size != (1, 1):
        return Size(2, 1.5)
    return Size(3, 0.7) if "attn2" in path else None


RECIPES = {
    "lora": Recipe(),
    "locon": Recipe("locon", size=sizes),
    "dora": Recipe("dora", size=sizes),
    "loha": Recipe("loha", size=sizes),
    "lokr": Recipe("lokr", factor=4, size=sizes),
    "lokr, square": Recipe("lokr"),
    "pissa": Recipe("locon", init="pissa", size=sizes),
    "olora": Recipe("locon", init="olora", size=sizes),
    "gaussian": Recipe(init="gaussian"),
}


def adapted(pipe, recipe: Recipe, trained: bool = True) -> dict[str, torch.nn.Module]:
    """All that the algorithm adapts; where `trained`, its weights moved by noise."""
    modules = {}
    for component, ends in narrow(SD15, "full", convolutions=recipe.algo != "lora").items():
        modules[component] = getattr(pipe, component)
        inject.adapt(modules[component], ends, RANK, ALPHA, 0, recipe)
    generator = torch.Generator().manual_seed(3)
    for module in modules.values() if trained else ():
        for adapter in inject.adapters(module).values():
            for weight in adapter.weights.values():
                weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    return modules


def plain_delta(parts: dict[str, torch.Tensor], base: torch.Tensor) -> torch.Tensor:
    """What LyCORIS 3.2 and sd-scripts add to a weight, in float64, written down anew from their sources."""
    p = {name: tensor.double() for name, tensor in parts.items()}
    alpha = p["alpha"].item()
    if "hada_w1_a" in p:
        change = (p["hada_w1_a"] @ p["hada_w1_b"]) * (p["hada_w2_a"] @ p["hada_w2_b"]) * alpha / len(p["hada_w1_b"])
    elif "lokr_w1" in p:
        whole = "lokr_w2" in p
        second = p["lokr_w2"] if whole else p["lokr_w2_a"] @ p["lokr_w2_b"]
        first = p["lokr_w1"][:, :, None, None] if second.ndim == 4 else p["lokr_w1"]
        change = torch.kron(first, second) * (1 if whole else alpha / len(p["lokr_w2_b"]))
    else:
        up, down = p["lora_up.weight"], p["lora_down.weight"]
        change = up.flatten(1) @ down.flatten(1) * alpha / len(down)
    change = change.reshape(base.shape)
    if "dora_scale" not in p:
        return change
    whole = base.double() + change  # LyCORIS: weight.transpose(0, 1).reshape(weight.shape[1], -1).norm(dim=1)
    norm = whole.transpose(0, 1).reshape(whole.shape[1], -1).norm(dim=1).reshape(1, -1, *(1,) * (whole.ndim - 2))
    return whole * (p["dora_scale"] / norm) - base.double()


def with_file(pipe, path: Path, family: Family = SD15):
    """A pipeline with a file added to its weights, names cut at the first dot as A1111 does."""
    layers = file_names(pipe, family)
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(path).items():
        name, _, part = key.partition(".")
        parts.setdefault(name, {})[part] = tensor
    for name, found in parts.items():
        weight = layers[name].weight
        weight.data += plain_delta(found, weight.data).float()
    return pipe


def file_names(pipe, family: Family) -> dict[str, torch.nn.Module]:
    """What web UIs call each layer of a pipeline; SDXL's blocks are Stability's."""
    spell = sdxl_ldm if family.name == "sdxl" else str
    layers = {"lora_unet_" + spell(name).replace(".", "_"): layer for name, layer in pipe.unet.named_modules()}
    first = "lora_te1_" if family.name == "sdxl" else "lora_te_"
    for component, prefix in zip(family.text_encoders, (first, "lora_te2_"), strict=False):
        for name, layer in getattr(pipe, component).named_modules():
            layers[f"{prefix}text_model_{name.removeprefix('text_model.').replace('.', '_')}"] = layer
    return layers


def assert_same(pipe, other, fresh, close: float = 1e-4, skip: int = 0, family: Family = SD15) -> None:
    """Two pipelines' text and then picture (`skip`: without the text) are the same, and the base's another."""
    outputs = (tiny.outputs(family, p)[skip:] for p in (pipe, other, fresh))
    for one, two, before in zip(*outputs, strict=True):
        assert (one - before).abs().max() > 0.01
        assert (one - two).abs().max() <= close * one.abs().max()


@pytest.mark.parametrize("name", RECIPES)
def test_a_new_adapter_changes_nothing_and_the_base_keeps_its_bits(name):
    pipe, fresh = tiny.sd15(), tiny.sd15()
    before = torch.get_rng_state()
    modules = adapted(pipe, RECIPES[name], trained=False)
    assert torch.equal(torch.get_rng_state(), before)
    for component, module in modules.items():
        now = {key.replace(".base_layer", ""): weight for key, weight in module.state_dict().items()}
        for key, weight in getattr(fresh, component).state_dict().items():
            assert torch.equal(now[key], weight), key
        trained = {name for name, weight in module.named_parameters() if weight.requires_grad}
        live = {id(weight) for adapter in inject.adapters(module).values() for weight in adapter.weights.values()}
        assert live == {id(module.get_parameter(name)) for name in trained}
        assert all(module.get_parameter(name).dtype == torch.float32 for name in trained)
    assert len(inject.adapters(pipe.unet)) == (192 if RECIPES[name].algo == "lora" else 277)
    for one, two in zip(tiny.outputs(SD15, pipe), tiny.outputs(SD15, fresh), strict=True):
        # the start's product less itself is zero but for rounding
        torch.testing.assert_close(one, two, rtol=0, atol=2e-5 if RECIPES[name].init in ("pissa", "olora") else 0)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("alpha", [2.0, 0.7])
def test_the_plain_formula_makes_the_live_model_of_the_file(name, alpha, tmp_path):
    pipe, path = tiny.sd15(), tmp_path / "a.safetensors"
    modules = adapted(pipe, RECIPES[name])
    file.write(path, packed(modules, alpha), SD15, alpha, torch.float32, {})
    verify(path, modules, SD15, alpha, torch.float32)
    tensors = load_file(path)
    assert {value.item() for key, value in tensors.items() if key.endswith(".alpha")} == {torch.tensor(alpha).item()}
    assert_same(pipe, with_file(tiny.sd15(), path), tiny.sd15())


@pytest.mark.parametrize("name", ["pissa", "dora", "loha", "lokr"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_verify_allows_rounding_and_finds_what_is_wrong_in_any_factor(name, dtype, tmp_path):
    unet, path = tiny.sd15().unet, tmp_path / "a.safetensors"
    modules = {"unet": unet}
    inject.adapt(unet, ("attn2.to_q", "conv1"), RANK, ALPHA, 0, RECIPES[name])
    generator = torch.Generator().manual_seed(3)
    for adapter in inject.adapters(unet).values():
        for weight in adapter.weights.values():
            weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    file.write(path, packed(modules, 0.7), SD15, 0.7, dtype, {})
    verify(path, modules, SD15, 0.7, dtype)
    good = load_file(path)
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_q"
    parts = [key for key in good if key.startswith(f"{layer}.") and not key.endswith(".alpha")]
    assert len(parts) >= 2
    for key in parts:
        without = {other: tensor for other, tensor in good.items() if other != key}
        for harmed in (good | {key: good[key] * 1.05}, good | {key: good[key] * torch.nan}, without):
            save_file(harmed, path)
            with pytest.raises(PatinaError, match=layer):
                verify(path, modules, SD15, 0.7, dtype)


@pytest.mark.parametrize("name", ["lora", "locon", "pissa", "olora"])
def test_diffusers_reads_the_file_as_what_was_trained(name, tmp_path):
    pipe, fresh = tiny.sd15(), tiny.sd15()
    modules = adapted(pipe, RECIPES[name])
    file.write(tmp_path / "a.safetensors", packed(modules, ALPHA), SD15, ALPHA, torch.float32, {})
    fresh.load_lora_weights(str(tmp_path), weight_name="a.safetensors")
    assert_same(pipe, fresh, tiny.sd15())


def test_baked_dora_is_a_lora_that_diffusers_reads(tmp_path):
    pipe, fresh = tiny.sd15(), tiny.sd15()
    modules = adapted(pipe, RECIPES["dora"])
    whole = baked(modules, ALPHA, rank=400)
    assert whole.lost < 1e-6
    file.write(tmp_path / "a.safetensors", whole.state, SD15, ALPHA, torch.float32, {})
    verify(tmp_path / "a.safetensors", modules, SD15, ALPHA, torch.float32, whole.state)
    fresh.load_lora_weights(str(tmp_path), weight_name="a.safetensors")
    assert_same(pipe, fresh, tiny.sd15())
    lost = [baked(modules, ALPHA, rank).lost for rank in (4, 8, 16)]
    assert 1 > lost[0] > lost[1] > lost[2] > 0
