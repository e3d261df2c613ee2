"""Every subcommand of tools/lora.py meets every kind of bad file with one sentence, and leaves nothing behind."""

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import ldm
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from test_convert import Harm
from toolbox import TOOLS, command, load_tool

from patina.errors import PatinaError
from patina.families.sd15 import SD15
from patina.lora import file, inject

LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
WEIGHT = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"

lora = load_tool("lora").main


class World(NamedTuple):
    """Sound files and bad ones."""

    base: Path
    lora: Path
    dora: Path
    bad: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    place = tmp_path_factory.mktemp("world")
    found = World(*(place / name for name in ("base.safetensors", "lora.safetensors", "dora.safetensors", "bad")))
    found.bad.mkdir()
    save(ldm.checkpoint(tiny.sd15()), found.base)
    file.write(found.lora, inject.state(tiny.adapted(SD15, tiny.sd15())), SD15, tiny.ALPHA, torch.float32, {})
    save(load_file(found.lora) | {f"{LAYER}.dora_scale": torch.ones(1, 32)}, found.dora)
    damaged_headers(found.lora.read_bytes(), found.bad)
    others(found)
    return found


def save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)


def damaged_headers(sound: bytes, folder: Path) -> None:
    length = int.from_bytes(sound[:8], "little")
    header, payload = json.loads(sound[8 : 8 + length]), sound[8 + length :]
    first, second = [name for name in header if name.endswith("up.weight")][:2]
    twice = json.dumps(header).removesuffix("}") + f', "{first}": {json.dumps(header[first])}}}'
    shared = json.dumps(header | {second: header[first]})
    for name, content in (
        ("cut header", sound[: length // 2]),
        ("cut", sound[:-100]),
        ("header of 2 GB", struct.pack("<Q", 2_000_000_000) + sound[8:]),
        ("one name twice", struct.pack("<Q", len(twice)) + twice.encode() + payload),
        ("overlapping", struct.pack("<Q", len(shared)) + shared.encode() + payload),
        ("empty", b""),
    ):
        (folder / f"{name}.safetensors").write_bytes(content)


def others(world: World) -> None:
    (world.bad / "folder.safetensors").mkdir()
    torch.save({"a": torch.zeros(2), "b": Harm(world.bad / "run")}, world.bad / "pickle.safetensors")
    save({"a": torch.zeros(2)}, world.bad / "of nothing.safetensors")
    tensors = load_file(world.lora)
    tensors[f"{LAYER}.lora_up.weight"][0, 0] = torch.nan
    save(tensors, world.bad / "lora with NaN.safetensors")
    tensors = load_file(world.base)
    tensors[WEIGHT][0, 0] = torch.nan
    save(tensors, world.bad / "base with NaN.safetensors")
    save(ldm.checkpoint(tiny.sdxl()), world.bad / "base of sdxl.safetensors")
    name = "lora_unet_input_blocks_7_1_transformer_blocks_9_attn1_to_q"
    save(
        {f"{name}.{part}.weight": torch.ones(shape) for part, shape in (("lora_up", (8, 2)), ("lora_down", (2, 8)))},
        world.bad / "lora of sdxl.safetensors",
    )


UNSOUND = {
    "cut header": "not a whole safetensors file",
    "cut": "not a sound safetensors file",
    "header of 2 GB": "not a whole safetensors file",
    "one name twice": "one name occurs twice",
    "overlapping": "overlap",
    "empty": "not a whole safetensors file .0 bytes.",
    "missing": "no such file",
}
"""Bad file -> what every subcommand says of it."""
ANY = {**UNSOUND, "pickle": "this is a pickle.*convert-base"}
LORA = {
    **ANY,
    "folder": "no such file",
    "of nothing": "none of its 1 tensors is a LoRA's",
    "base of sdxl": "none of its .* tensors is a LoRA's",
    "lora with NaN": "NaN or infinity",
}
BASE = {
    **ANY,
    "folder": "holds no unet",
    "of nothing": "no checkpoint of Stable Diffusion",
    "lora of sdxl": "no checkpoint of Stable Diffusion",
    "base of sdxl": "sdxl",
}
NAN = {"base with NaN": "NaN or infinity"}
CONVERTED = {
    **UNSOUND,
    "folder": "no such file",
    "of nothing": "a safetensors file already",
    "pickle": "nothing of it was run",
}
Command = Callable[[World, str, str], list[str]]
"""(sound files, bad file, output) -> the command line."""
COMMANDS: dict[str, tuple[Command, dict[str, str]]] = {
    "inspect": (lambda w, bad, out: ["inspect", bad], {k: v for k, v in LORA.items() if k != "lora with NaN"}),
    "verify": (lambda w, bad, out: ["verify", bad], LORA),
    "verify --family": (
        lambda w, bad, out: ["verify", bad, "--family", "sd15"],
        {"lora of sdxl": "it is for sdxl, not for sd15"},
    ),
    "verify --base": (lambda w, bad, out: ["verify", str(w.lora), "--base", bad], BASE),
    "convert": (lambda w, bad, out: ["convert", bad, out], LORA),
    "merge": (
        lambda w, bad, out: ["merge", str(w.lora), bad, "--output", out],
        {**LORA, "lora of sdxl": "different families"},
    ),
    "merge --rank": (lambda w, bad, out: ["merge", str(w.lora), bad, "--output", out, "--rank", "2"], LORA),
    "merge --base": (
        lambda w, bad, out: ["merge", str(w.lora), str(w.dora), "--output", out, "--rank", "2", "--base", bad],
        BASE | NAN,
    ),
    "resize": (lambda w, bad, out: ["resize", bad, out, "--rank", "2"], LORA),
    "resize --base": (
        lambda w, bad, out: ["resize", str(w.dora), out, "--energy", "0.5", "--base", bad],
        BASE | NAN,
    ),
    "bake BASE": (
        lambda w, bad, out: ["bake", bad, str(w.lora), "--output", out],
        {**BASE, **NAN, "base of sdxl": "has no layer"},
    ),
    "bake FILE": (
        lambda w, bad, out: ["bake", str(w.base), bad, "--output", out],
        {**LORA, "lora of sdxl": "has no layer"},
    ),
    "extract BASE": (lambda w, bad, out: ["extract", bad, str(w.base), out, "--rank", "2"], BASE | NAN),
    "extract TUNED": (lambda w, bad, out: ["extract", str(w.base), bad, out, "--rank", "2"], BASE | NAN),
    "convert-base": (lambda w, bad, out: ["convert-base", bad, out], CONVERTED),
}
ROWS = [(name, bad, said) for name, (_, expected) in COMMANDS.items() for bad, said in expected.items()]


def test_every_subcommand_is_in_the_table(capsys):
    with pytest.raises(SystemExit):
        lora(["--help"])
    listed = re.findall(r"^    (\S+)", capsys.readouterr().out, re.MULTILINE)
    assert {name.split()[0] for name in COMMANDS} == set(listed)


@pytest.mark.parametrize(("command", "bad", "said"), ROWS, ids=[f"{command}-{bad}" for command, bad, _ in ROWS])
def test_a_bad_file_has_its_sentence_and_nothing_is_written(world, tmp_path, capsys, command, bad, said):
    """`verify` says what is wrong with a LoRA and exits with 1; the rest is refused: for the tool that is 2."""
    line = COMMANDS[command][0](world, str(world.bad / f"{bad}.safetensors"), str(tmp_path / "out.safetensors"))
    try:
        assert lora(line) == 1
        assert command.startswith("verify")
        told = capsys.readouterr().out
    except PatinaError as error:
        told = str(error)
        assert "\n" not in told
    assert re.search(said, told), told
    assert list(tmp_path.iterdir()) == []
    assert not (world.bad / "run").exists()


@pytest.mark.parametrize("name", ["inspect", "verify", "convert"])
def test_a_user_sees_a_sentence_and_no_stack_trace(world, tmp_path, name):
    """The rest of the way, from the command line on."""
    bad = str(world.bad / "pickle.safetensors")
    out = [str(tmp_path / "out.safetensors")] if name == "convert" else []
    done = command(TOOLS / "lora.py", name, bad, *out)
    assert done.returncode == (1 if name == "verify" else 2)
    told = done.stdout + done.stderr
    assert len(told.splitlines()) == 1
    assert "this is a pickle" in told
    assert not (world.bad / "run").exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["bake", "merge"])
def test_a_folder_is_not_written_over_by_a_file(world, tmp_path, name):
    (tmp_path / "out.safetensors").mkdir()
    first = world.base if name == "bake" else world.lora
    line = [name, str(first), str(world.lora), "--output", str(tmp_path / "out.safetensors"), "--force"]
    with pytest.raises(PatinaError, match="is a folder"):
        lora(line)
    assert [path.name for path in tmp_path.iterdir()] == ["out.safetensors"]


def test_an_output_below_a_file_is_refused_in_a_sentence(world):
    done = command(TOOLS / "lora.py", "convert", str(world.lora), str(world.base / "out.safetensors"))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_numbers_that_a_dtype_cannot_hold_are_refused(world, tmp_path):
    tensors = load_file(world.lora)
    tensors[f"{LAYER}.lora_up.weight"][0, 0] = 1e6
    save(tensors, tmp_path / "in.safetensors")
    command = ["convert", str(tmp_path / "in.safetensors"), str(tmp_path / "out.safetensors"), "--dtype"]
    with pytest.raises(PatinaError, match=r"to_q.lora_up.weight would not be finite in torch.float16; write --dtype"):
        lora([*command, "fp16"])
    assert [path.name for path in tmp_path.iterdir()] == ["in.safetensors"]
    assert lora([*command, "bf16"]) == 0
