"""Options of tools/lora.py do what they say: bases for DoRA, other numbers, and writing over what is there."""

from pathlib import Path
from typing import NamedTuple

import ldm
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from test_lora_tool import assert_same, deltas, lora

from patina.errors import PatinaError
from patina.families.sd15 import SD15
from patina.lora import inject
from patina.lora.delta import Change
from patina.lora.file import write
from patina.lora.foreign import read_any
from patina.lora.pack import packed
from patina.lora.recipe import Recipe


class World(NamedTuple):
    """A tiny base, a DoRA and a plain LoRA for it, and the base as a pickle."""

    base: Path
    dora: Path
    plain: Path
    pickle: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    place = tmp_path_factory.mktemp("world")
    found = World(*(place / name for name in ("base.safetensors", "d.safetensors", "p.safetensors", "base.ckpt")))
    weights = {name: weight.contiguous().clone() for name, weight in ldm.checkpoint(tiny.sd15()).items()}
    save_file(weights, found.base)
    torch.save({"state_dict": weights, "epoch": 3}, found.pickle)
    for path, recipe in ((found.dora, Recipe("dora")), (found.plain, Recipe())):
        write(path, packed({"unet": adapted(recipe)}, tiny.ALPHA), SD15, tiny.ALPHA, torch.float32, SD15.metadata)
    return found


def adapted(recipe: Recipe) -> torch.nn.Module:
    """A UNet of which the self-attention is adapted, its weights moved by noise."""
    unet, generator = tiny.sd15().unet, torch.Generator().manual_seed(7)
    inject.adapt(unet, ("attn1.to_q", "attn1.to_out.0"), tiny.RANK, tiny.ALPHA, 0, recipe)
    for adapter in inject.adapters(unet).values():
        for weight in adapter.weights.values():
            weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    return unet


def change_of_dora(change: Change, weight: torch.Tensor) -> torch.Tensor:
    """m * (W + D) / |W + D| - W, column by column, written down anew."""
    up, down = (change.parts[f"lora_{part}.weight"].double() for part in ("up", "down"))
    merged = weight.double() + tiny.ALPHA / len(down) * up @ down
    return merged / merged.square().sum(0).sqrt() * change.parts["dora_scale"].double().flatten() - weight.double()


def expected(world: World) -> dict:
    """What the DoRA adds to each layer of the base."""
    unet = tiny.sd15().unet
    changes = read_any(world.dora).changes
    return {place: change_of_dora(change, unet.get_submodule(place.path).weight) for place, change in changes.items()}


def test_with_its_base_a_dora_becomes_a_plain_lora(world, tmp_path, capsys):
    target = tmp_path / "out.safetensors"
    for rank, said in (("32", "exact"), ("2", "% off")):
        command = ["resize", str(world.dora), str(target), "--rank", rank, "--base", str(world.base), "--force"]
        assert lora([*command, "--dtype", "fp32"]) == 0
        assert said in capsys.readouterr().out
        if rank == "32":
            assert_same(deltas(target), expected(world), close=1e-5)
    assert {key.partition(".")[2] for key in load_file(target)} == {"lora_up.weight", "lora_down.weight", "alpha"}


def test_with_its_base_a_dora_is_merged(world, tmp_path):
    target = tmp_path / "out.safetensors"
    files = [f"{world.dora}:0.5", f"{world.plain}:-2"]
    command = ["merge", *files, "--output", str(target), "--rank", "32", "--base", str(world.base), "--dtype", "fp32"]
    assert lora(command) == 0
    plain = deltas(world.plain)
    assert_same(deltas(target), {k: 0.5 * v - 2 * plain[k] for k, v in expected(world).items()}, close=1e-5)


def test_a_pickled_base_is_converted(world, tmp_path, capsys):
    target = tmp_path / "out.safetensors"
    assert lora(["convert-base", str(world.pickle), str(target)]) == 0
    assert capsys.readouterr().out == f"{target}: written\n"
    before, after = load_file(world.base), load_file(target)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_pickle_under_a_wrong_name_is_converted_as_its_refusal_says(world, tmp_path):
    wrong, target = tmp_path / "wrong.safetensors", tmp_path / "out.safetensors"
    wrong.write_bytes(world.pickle.read_bytes())
    with pytest.raises(PatinaError, match=f"convert-base {wrong} NEW.safetensors"):
        lora(["bake", str(wrong), str(world.plain), "--output", str(target)])
    assert lora(["convert-base", str(wrong), str(target)]) == 0
    assert load_file(target).keys() == load_file(world.base).keys()


def test_extract_keeps_a_share(world, tmp_path, capsys):
    tuned, target = tmp_path / "tuned.safetensors", tmp_path / "out.safetensors"
    lora(["bake", str(world.base), str(world.plain), "--output", str(tuned)])
    lora(["extract", str(world.base), str(tuned), str(target), "--energy", "0.6", "--dtype", "fp32"])
    assert "ranks 1 to" in capsys.readouterr().out
    found = deltas(target)
    for place, exact in deltas(world.plain).items():
        lost = (exact - found[place]).square().sum()
        assert 0 < lost <= 0.4 * exact.square().sum() * (1 + 1e-4)


@pytest.mark.parametrize("command", ["convert", "merge", "resize", "bake", "extract", "convert-base"])
def test_force_writes_over_what_is_there(world, tmp_path, command):
    out, tuned = tmp_path / "out.safetensors", tmp_path / "tuned.safetensors"
    lora(["bake", str(world.base), str(world.plain), "--output", str(tuned)])
    line = {
        "convert": ["convert", str(world.plain), str(out)],
        "merge": ["merge", str(world.plain), str(world.plain), "--output", str(out)],
        "resize": ["resize", str(world.plain), str(out), "--rank", "2"],
        "bake": ["bake", str(world.base), str(world.plain), "--output", str(out)],
        "extract": ["extract", str(world.base), str(tuned), str(out), "--rank", "2"],
        "convert-base": ["convert-base", str(world.pickle), str(out)],
    }[command]
    out.write_text("mine")
    with pytest.raises(PatinaError, match=f"{out} is there already; write --force"):
        lora(line)
    assert out.read_text() == "mine"
    assert lora([*line, "--force"]) == 0
    written = {tensor.dtype for tensor in load_file(out).values()}
    half = command in ("merge", "resize", "extract")  # whose --dtype is fp16 when left out
    assert (written == {torch.float16}) == half
