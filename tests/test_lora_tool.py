"""tools/lora.py shows, checks and converts LoRA files, writes nothing it was not asked to, obeys no file's texts."""

import hashlib
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from toolbox import load_tool

from patina.errors import PatinaError
from patina.families.sd15 import SD15
from patina.lora import file, foreign, inject
from patina.lora.delta import delta

NAME = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


lora = load_tool("lora").main


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with a tiny base and a LoRA for it."""
    folder = tmp_path_factory.mktemp("world")
    tiny.save_sd15(folder / "base")
    entries = {**SD15.metadata, "ss_output_name": "my_style", "modelspec.trigger_phrase": "mystyle"}
    state = inject.state(tiny.adapted(SD15, tiny.sd15()))
    file.write(folder / "a.safetensors", state, SD15, tiny.ALPHA, torch.float32, entries)
    return folder


def deltas(path: Path) -> dict:
    return {place: delta(change) for place, change in foreign.read_any(path).changes.items()}


def assert_same(one: dict, other: dict, close: float = 1e-6) -> None:
    assert one.keys() == other.keys()
    for place, expected in one.items():
        torch.testing.assert_close(other[place], expected, rtol=close, atol=close, msg=str(place))


def test_inspect_shows_what_the_file_holds(world, capsys):
    assert lora(["inspect", str(world / "a.safetensors")]) == 0
    out = capsys.readouterr().out
    assert "a LoRA for sd15" in out
    assert "lora, rank 4, alpha 2" in out
    assert "text_encoder 72, unet 192" in out
    assert "trigger    mystyle" in out
    bars = {
        line[2:11].strip(): line for line in out.splitlines() if line.startswith(("  IN", "  MID", "  OUT", "  TE"))
    }
    assert list(bars)[:7] == ["IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "MID"]
    assert list(bars)[-3:] == ["TE1 00-03", "TE1 04-07", "TE1 08-11"]
    assert max(line.count("#") for line in bars.values()) == 40
    middle = [delta for place, delta in deltas(world / "a.safetensors").items() if place.path.startswith("mid_block")]
    expected = sum(delta.square().sum().item() for delta in middle) ** 0.5
    assert float(bars["MID"].split()[-1]) == pytest.approx(expected, rel=0.01)
    assert "ss_output_name = my_style" in out


def test_a_hostile_file_steers_no_terminal(world, tmp_path, capsys):
    tensors = load_file(world / "a.safetensors") | {"\x1b]0;owned\x07.lora_up.weight": torch.ones(1)}
    save_file(
        tensors, tmp_path / "a.safetensors", {"ss_\x1b[2J": "x\x1b[31m\r\nss_fake = 1", "ss_output_name": "\x9b5m"}
    )
    assert lora(["inspect", str(tmp_path / "a.safetensors")]) == 0
    assert lora(["verify", str(tmp_path / "a.safetensors")]) == 1
    assert lora(["convert", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")]) == 0
    out = capsys.readouterr().out
    assert not {char for char in out if not char.isprintable()} - {"\n"}
    assert "\nss_fake" not in out
    assert "\\x1b]0;owned" in out


def test_verify_passes_what_is_sound(world, capsys):
    for more in ([], ["--family", "sd15"], ["--base", str(world / "base")]):
        assert lora(["verify", str(world / "a.safetensors"), *more]) == 0
    assert f"sound, 264 layers for sd15, fits {world / 'base'}" in capsys.readouterr().out


def nan(tensors):
    tensors[f"{NAME}.lora_up.weight"][0, 0] = float("nan")


def of_sdxl(tensors):
    for part in ("lora_down.weight", "lora_up.weight"):
        tensors[f"{NAME}.{part}".replace("blocks_0_attn1", "blocks_9_attn1")] = tensors[f"{NAME}.{part}"].clone()


def too_wide(tensors):
    tensors[f"{NAME}.lora_up.weight"] = torch.ones(320, 4)


def unknown(tensors):
    tensors["lora_unet_nowhere.alpha"] = torch.ones(())


@pytest.mark.parametrize(
    ("harm", "more", "said"),
    [
        (nan, [], f"1 tensors hold NaN or infinity: {NAME}.lora_up.weight"),
        (of_sdxl, [], "its layers are of no one family"),
        (None, ["--family", "sdxl"], "it is for sd15, not for sdxl"),
        (too_wide, ["--base"], f"1 layers have other sizes than in BASE: {NAME} [320, 32] for [32, 32]"),
        (unknown, [], "1 tensors belong to no known layer or algorithm: lora_unet_nowhere.alpha"),
    ],
)
def test_verify_says_what_is_wrong(world, tmp_path, capsys, harm, more, said):
    path = tmp_path / "bad.safetensors"
    tensors = load_file(world / "a.safetensors")
    if harm:
        harm(tensors)
    save_file(tensors, path, dict(SD15.metadata))
    more = [*more, str(world / "base")] if more == ["--base"] else more
    assert lora(["verify", str(path), *more]) == 1
    assert said.replace("BASE", str(world / "base")) in capsys.readouterr().out


def test_verify_finds_bytes_that_changed(world, tmp_path, capsys):
    data = bytearray((world / "a.safetensors").read_bytes())
    data[-3] ^= 1
    (tmp_path / "a.safetensors").write_bytes(data)
    assert lora(["verify", str(tmp_path / "a.safetensors")]) == 1
    assert "sshs_model_hash" in capsys.readouterr().out
    (tmp_path / "a.safetensors").write_bytes(b"")
    assert lora(["verify", str(tmp_path / "a.safetensors")]) == 1
    assert "not a whole safetensors file (0 bytes)" in capsys.readouterr().out


def test_converted_to_peft_and_back_it_is_the_same(world, tmp_path, capsys):
    dotted, back = tmp_path / "peft.safetensors", tmp_path / "back.safetensors"
    assert lora(["convert", str(world / "a.safetensors"), str(dotted), "--to", "peft"]) == 0
    assert all("." in key.removesuffix(".weight") and "alpha" not in key for key in load_file(dotted))
    assert_same(deltas(world / "a.safetensors"), deltas(dotted))
    lora(["verify", str(dotted)])
    assert "A1111, Forge and InvokeAI read nothing of it" in capsys.readouterr().out
    assert lora(["convert", str(dotted), str(back), "--dtype", "bf16"]) == 0
    assert set(load_file(back)) == set(load_file(world / "a.safetensors"))
    assert {tensor.dtype for tensor in load_file(back).values()} == {torch.bfloat16}
    assert_same(deltas(dotted), deltas(back), close=0.03)
    entries = file.read(back).metadata
    assert entries["modelspec.trigger_phrase"] == "mystyle"
    raw = back.read_bytes()
    payload = raw[8 + int.from_bytes(raw[:8], "little") :]
    assert entries["sshs_model_hash"] == hashlib.sha256(payload).hexdigest()


def test_diffusers_reads_the_peft_spelling_as_it_reads_kohyas(world, tmp_path):
    lora(["convert", str(world / "a.safetensors"), str(tmp_path / "peft.safetensors"), "--to", "peft"])
    outputs = []
    for path in (world / "a.safetensors", tmp_path / "peft.safetensors"):
        pipe = tiny.sd15()
        pipe.load_lora_weights(str(path.parent), weight_name=path.name)
        outputs.append(tiny.outputs(SD15, pipe))
    for one, other, base in zip(*outputs, tiny.outputs(SD15, tiny.sd15()), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        assert (one - base).abs().max() > 0.01


def test_sdxl_is_spelt_in_ldms_blocks_and_in_diffusers(tmp_path):
    stem = "unet.up_blocks.0.attentions.1.transformer_blocks.9.attn2.to_k"
    text = "text_encoder_2.text_model.encoder.layers.30.mlp.fc1"
    parts = {"lora_A.weight": torch.ones(2, 2048), "lora_B.weight": torch.ones(3, 2)}
    save_file(
        {f"{name}.{part}": part_.clone() for name in (stem, text) for part, part_ in parts.items()},
        tmp_path / "a.safetensors",
    )
    names = {}
    for spelling in ("kohya", "diffusers"):
        lora(["convert", str(tmp_path / "a.safetensors"), str(tmp_path / f"{spelling}.safetensors"), "--to", spelling])
        names[spelling] = {key.partition(".")[0] for key in load_file(tmp_path / f"{spelling}.safetensors")}
        assert_same(deltas(tmp_path / "a.safetensors"), deltas(tmp_path / f"{spelling}.safetensors"))
    second = "lora_te2_text_model_encoder_layers_30_mlp_fc1"
    assert names["kohya"] == {"lora_unet_output_blocks_1_1_transformer_blocks_9_attn2_to_k", second}
    assert names["diffusers"] == {"lora_unet_up_blocks_0_attentions_1_transformer_blocks_9_attn2_to_k", second}


def test_what_a_spelling_cannot_hold_is_refused(tmp_path):
    ones = {f"hada_w{n}_{side}": torch.ones(2, 2) for n in (1, 2) for side in "ab"}
    save_file({f"{NAME}.{part}": tensor.clone() for part, tensor in ones.items()}, tmp_path / "a.safetensors")
    with pytest.raises(PatinaError, match=r"peft has no spelling for loha .*lora.py resize"):
        lora(["convert", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"), "--to", "peft"])
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_nothing_is_written_over_unasked(world, tmp_path):
    path = tmp_path / "b.safetensors"
    path.write_text("mine")
    with pytest.raises(PatinaError, match="--force"):
        lora(["convert", str(world / "a.safetensors"), str(path)])
    assert path.read_text() == "mine"
    assert lora(["convert", str(world / "a.safetensors"), str(path), "--force"]) == 0
    assert_same(deltas(world / "a.safetensors"), deltas(path))
