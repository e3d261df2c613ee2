"""Files of other algorithms: what can be read is sound, what cannot is named; and headers made anew are true."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from toolbox import load_tool

from patina.errors import PatinaError
from patina.families.sd15 import SD15
from patina.lora import foreign
from patina.lora.delta import delta
from patina.lora.file import read_parts
from patina.lora.unread import unread

lora = load_tool("lora").main

LAYER = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
OTHER = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_k"
CONV = "lora_unet_down_blocks_1_resnets_0_conv1"
NORM = "lora_unet_down_blocks_1_resnets_0_norm1"
OUT, IN, R = 6, 4, 2


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def rotations(*count: int, size: int) -> torch.Tensor:
    """The skew-symmetric halves of which OFT's rotations are made, R = (I + Q)(I - Q)^-1."""
    free = draw(*count, size, size)
    return free - free.mT


LORA = {"lora_down.weight": draw(R, IN), "lora_up.weight": draw(OUT, R), "alpha": torch.tensor(2.0)}
LOHA = {f"hada_w{n}_{side}": draw(*((OUT, R) if side == "a" else (R, IN)), seed=n) for n in (1, 2) for side in "ab"}
LOKR = {"lokr_w1": draw(2, 2), "lokr_w2_a": draw(3, 1), "lokr_w2_b": draw(1, 2), "alpha": torch.tensor(1.0)}
WEIGHT = draw(OUT, IN, seed=5)
UNREAD = {
    "norm": {NORM: {"w_norm": draw(OUT), "b_norm": draw(OUT, seed=1)}},
    "norm, as whole differences": {NORM: {"diff": draw(OUT), "diff_b": draw(OUT, seed=1)}},
    "OFT": {LAYER: {"oft_blocks": rotations(3, size=2), "alpha": torch.tensor(1e-3)}},
    "BOFT": {LAYER: {"oft_blocks": rotations(2, 3, size=2), "rescale": torch.ones(OUT, 1)}},
    "GLoRA": {
        LAYER: {
            "a1.weight": draw(R, IN),
            "a2.weight": draw(IN, R),
            "b1.weight": draw(R, IN, seed=1),
            "b2.weight": draw(OUT, R, seed=1),
            "alpha": torch.tensor(2.0),
        }
    },
    "IA3": {LAYER: {"weight": draw(OUT, 1), "on_input": torch.tensor(False)}},
}


def written(path: Path, layers: dict[str, dict[str, torch.Tensor]], metadata: dict[str, str] | None = None) -> Path:
    tensors = {
        f"{name}.{part}": tensor.clone().contiguous()
        for name, parts in layers.items()
        for part, tensor in parts.items()
    }
    save_file(tensors, path, metadata)
    return path


def test_whole_differences_with_their_biases_are_sound(tmp_path, capsys):
    tuned = WEIGHT + draw(OUT, IN, seed=8)
    full = {LAYER: {"diff": tuned - WEIGHT}, CONV: {"diff": draw(OUT, IN, 3, 3), "diff_b": draw(OUT)}}
    path = written(tmp_path / "a.safetensors", full, dict(SD15.metadata))
    assert lora(["verify", str(path)]) == 0
    assert "sound, 2 layers for sd15" in capsys.readouterr().out
    found = {place.path[-4:]: delta(change) for place, change in foreign.read_any(path).changes.items()}
    torch.testing.assert_close(WEIGHT.double() + found["to_q"], tuned.double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", UNREAD)
def test_what_is_not_read_is_named_and_not_called_damaged(name, tmp_path, capsys):
    algorithm = name.partition(",")[0]
    path = written(tmp_path / "a.safetensors", UNREAD[name])
    assert lora(["verify", str(path)]) == 1
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert f"holds {algorithm} in 1 layer, which Patina does not read" in said
    with pytest.raises(PatinaError, match=f"holds {algorithm} in 1 layer"):
        lora(["convert", str(path), str(tmp_path / "b.safetensors")])


@pytest.mark.parametrize("name", UNREAD)
def test_beside_what_is_read_it_is_named_alone(name, tmp_path, capsys):
    path = written(tmp_path / "a.safetensors", {OTHER: LORA} | UNREAD[name])
    assert lora(["verify", str(path)]) == 1
    algorithm = name.partition(",")[0]
    assert capsys.readouterr().out.splitlines() == [
        f"{path}: layers: 1 sound, and {algorithm} in 1 layer, which Patina does not read; WebUIs that know it do"
    ]
    found = foreign.read_any(path)
    assert sorted(found.unknown) == sorted(f"{layer}.{part}" for layer, parts in UNREAD[name].items() for part in parts)


def test_several_are_counted_by_layer_and_what_nobody_knows_is_told_apart(tmp_path, capsys):
    layers = {OTHER: LORA} | UNREAD["OFT"] | UNREAD["norm"] | {CONV: UNREAD["OFT"][LAYER]}
    path = written(tmp_path / "a.safetensors", layers | {"lora_unet_nowhere": {"alpha": torch.ones(())}})
    assert lora(["verify", str(path)]) == 1
    one, other = capsys.readouterr().out.splitlines()
    assert "and OFT in 2 layers, norm in 1 layer, which" in one
    assert "1 tensors belong to no known layer or algorithm: lora_unet_nowhere.alpha" in other
    assert unread({f"{LAYER}.lora_up.weight": 2, f"{NORM}.alpha": 0, "text.weight": 2}) == {}


MODULES = {
    "lora": ({LAYER: LORA}, "networks.lora", {}),
    "loha": ({LAYER: LOHA}, "lycoris.kohya", {"algo": "loha"}),
    "lokr": ({LAYER: LOKR, OTHER: LORA}, "lycoris.kohya", {"algo": "lokr"}),
    "full": ({LAYER: {"diff": WEIGHT}}, "lycoris.kohya", {"algo": "full"}),
    "Tucker": (
        {
            CONV: {
                "lora_down.weight": draw(R, IN, 1, 1),
                "lora_up.weight": draw(OUT, R, 1, 1),
                "lora_mid.weight": draw(R, R, 3, 3),
            }
        },
        "lycoris.kohya",
        {"algo": "locon", "use_tucker": "True"},
    ),
    "dora": (
        {LAYER: LORA | {"dora_scale": torch.ones(1, IN)}},
        "lycoris.kohya",
        {"algo": "locon", "dora_wd": "True", "wd_on_output": "False"},
    ),
    "dora along the outputs": (
        {LAYER: LORA | {"dora_scale": torch.ones(OUT, 1)}},
        "lycoris.kohya",
        {"algo": "locon", "dora_wd": "True", "wd_on_output": "True"},
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_header_made_anew_names_the_module_of_its_layers(name, tmp_path):
    layers, module, args = MODULES[name]
    out = tmp_path / "b.safetensors"
    assert lora(["convert", str(written(tmp_path / "a.safetensors", layers)), str(out)]) == 0
    entries = read_parts(out)[1]
    assert entries["ss_network_module"] == module
    assert json.loads(entries["ss_network_args"]) == args


def test_a_header_that_names_its_module_keeps_it_and_a_plain_lora_made_of_it_does_not(tmp_path):
    told = {"ss_network_module": "lycoris.kohya", "ss_network_args": '{"algo": "lokr", "preset": "full"}'}
    path = written(tmp_path / "a.safetensors", {LAYER: LOKR}, told)
    for words, expected in (
        (["convert", str(path), str(tmp_path / "b.safetensors")], told),
        (["resize", str(path), str(tmp_path / "c.safetensors"), "--rank", "2"], {"ss_network_module": "networks.lora"}),
        (["merge", str(path), "--output", str(tmp_path / "d.safetensors"), "--rank", "2"], {"ss_network_args": "{}"}),
    ):
        assert lora(words) == 0
        entries = read_parts(max(tmp_path.glob("*.safetensors")))[1]
        assert expected.items() <= entries.items()
