"""LoRA files of the tiny SD1.5: what is written, that a stranger reads it as what was trained, and what is refused."""

import hashlib
import json
import struct
from pathlib import Path

import pytest
import tiny
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from patina.errors import PatinaError
from patina.families import FAMILIES
from patina.lora import file, inject, metadata
from patina.lora.names import file_key, module_names
from patina.lora.verify import verify

SD15 = FAMILIES["sd15"]
RANK, ALPHA = tiny.RANK, tiny.ALPHA
QKVO = ("q_proj", "k_proj", "v_proj", "out_proj")
FACTS = metadata.TrainingFacts(
    output_name="my_style",
    network_dim=RANK,
    network_alpha=ALPHA,
    training_started_at=1700000000.5,
    training_finished_at=1700003600.0,
    resolution=(512, 512),
    seed=0,
    bucket_info=metadata.bucket_info({(512, 512): 3, (448, 576): 2}),
    dataset_dirs={"style_train": {"n_repeats": 2, "img_count": 5}},
    tag_frequency=metadata.tag_frequency("my_style", 2, ["Red house, oil", "oil, tree"]),
)


@pytest.fixture(scope="module")
def live():
    pipe = tiny.sd15()
    return pipe, tiny.adapted(SD15, pipe)


@pytest.fixture(scope="module")
def exported(live, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("lora") / "my_style.safetensors"
    entries = metadata.build(FACTS, SD15)
    file.write(path, inject.state(live[1]), SD15, ALPHA, torch.float32, entries)
    return path


def grammar() -> set[str]:
    """The names of webui readers for SD1.5, spelt out without looking at a model."""
    places = [f"down_blocks_{i}_attentions_{j}" for i in (0, 1, 2) for j in (0, 1)]
    places += ["mid_block_attentions_0"] + [f"up_blocks_{i}_attentions_{j}" for i in (1, 2, 3) for j in (0, 1, 2)]
    inner = [f"attn{n}_to_{which}" for n in (1, 2) for which in ("q", "k", "v", "out_0")] + [
        "ff_net_0_proj",
        "ff_net_2",
    ]
    parts = ["proj_in", "proj_out", *(f"transformer_blocks_0_{name}" for name in inner)]
    text = [f"self_attn_{which}" for which in QKVO] + ["mlp_fc1", "mlp_fc2"]
    return {f"lora_unet_{place}_{part}" for place in places for part in parts} | {
        f"lora_te_text_model_encoder_layers_{n}_{part}" for n in range(12) for part in text
    }


def convolutions() -> set[str]:
    """What LoCon has beyond it: 86 names, of which sd-scripts makes as many."""
    blocks = [f"down_blocks_{i}_resnets_{j}" for i in range(4) for j in (0, 1)] + ["mid_block_resnets_0"]
    blocks += ["mid_block_resnets_1"] + [f"up_blocks_{i}_resnets_{j}" for i in range(4) for j in (0, 1, 2)]
    wider = ["down_blocks_1_resnets_0", "down_blocks_2_resnets_0"]  # those whose width changes have a shortcut
    wider += [f"up_blocks_{i}_resnets_{j}" for i in range(4) for j in (0, 1, 2)]
    names = {f"{block}_{part}" for block in blocks for part in ("conv1", "conv2", "time_emb_proj")}
    names |= {f"{block}_conv_shortcut" for block in wider}
    names |= {f"down_blocks_{i}_downsamplers_0_conv" for i in (0, 1, 2)}
    names |= {f"up_blocks_{i}_upsamplers_0_conv" for i in (0, 1, 2)}
    return {f"lora_unet_{name}" for name in names}


def test_the_264_layers_have_the_names_that_web_uis_know(live, exported):
    names, fresh = set(file.read(exported).layers), tiny.sd15()
    unadapted = {"unet": fresh.unet, "text_encoder": fresh.text_encoder}
    assert len(names) == 264
    assert names == grammar()
    assert set(module_names(SD15, live[1])) == set(module_names(SD15, unadapted))
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)  # Stable Diffusion 1.5's own widths
    assert len(convolutions()) == 86
    known = set(module_names(SD15, {"unet": unet, "text_encoder": fresh.text_encoder}))
    assert known == grammar() | convolutions()
    assert set(load_file(exported)) == {
        f"{n}.{p}" for n in names for p in ("lora_down.weight", "lora_up.weight", "alpha")
    }


def test_a_name_in_a_file_leads_back_to_its_layer(live):
    for name, place in module_names(SD15, live[1]).items():
        assert live[1][place.component].get_submodule(place.path) is not None
        assert file_key(SD15, place) == name


def test_shapes_are_those_of_the_format(exported):
    down = "lora_unet_down_blocks_1_attentions_0"
    shapes = {key: list(tensor.shape) for key, tensor in load_file(exported).items()}
    assert shapes[f"{down}_proj_in.lora_down.weight"] == [RANK, 32, 1, 1]  # a 1x1 convolution in SD1.5
    assert shapes[f"{down}_proj_in.lora_up.weight"] == [32, RANK, 1, 1]
    assert shapes[f"{down}_transformer_blocks_0_ff_net_0_proj.lora_down.weight"] == [RANK, 32]
    assert shapes[f"{down}_transformer_blocks_0_ff_net_0_proj.lora_up.weight"] == [256, RANK]
    assert shapes[f"{down}_proj_in.alpha"] == []


def test_diffusers_reads_the_file_as_what_was_trained(live, exported):
    fresh = tiny.sd15()
    plain = tiny.outputs(SD15, fresh)
    fresh.load_lora_weights(str(exported.parent), weight_name=exported.name)
    for trained, read, before in zip(tiny.outputs(SD15, live[0]), tiny.outputs(SD15, fresh), plain, strict=True):
        torch.testing.assert_close(read, trained, rtol=1e-5, atol=1e-5)
        assert (trained - before).abs().max() > 0.01  # else the line above shows nothing


@pytest.mark.parametrize(
    ("alpha", "dtype", "close"),
    [(2.0, torch.float32, 1e-5), (2.7, torch.bfloat16, 0.05), (8.0, torch.float16, 0.01), (0.3, torch.float32, 1e-5)],
)
def test_the_file_is_the_plain_formula(tmp_path, alpha, dtype, close):
    """W + alpha / rank * up @ down on a fresh pipeline, names cut at the first dot as A1111 does."""
    pipe = tiny.sd15()
    modules = tiny.adapted(SD15, pipe, alpha=alpha)
    file.write(tmp_path / "a.safetensors", inject.state(modules), SD15, alpha, dtype, {})
    verify(tmp_path / "a.safetensors", modules, SD15, alpha, dtype)
    fresh, tensors = tiny.sd15(), load_file(tmp_path / "a.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    layers = {"lora_unet_" + path.replace(".", "_"): layer for path, layer in fresh.unet.named_modules()}
    te = {path.removeprefix("text_model."): layer for path, layer in fresh.text_encoder.named_modules()}
    layers |= {"lora_te_text_model_" + path.replace(".", "_"): layer for path, layer in te.items()}
    for name in {key.partition(".")[0] for key in tensors}:
        up, down = (tensors[f"{name}.lora_{which}.weight"].float().flatten(1) for which in ("up", "down"))
        delta = tensors[f"{name}.alpha"].item() / len(down) * up @ down
        layers[name].weight.data += delta.view_as(layers[name].weight)
    for trained, read in zip(tiny.outputs(SD15, pipe), tiny.outputs(SD15, fresh), strict=True):
        torch.testing.assert_close(read, trained, rtol=close, atol=close)


def test_the_header_says_what_web_uis_look_for(exported):
    entries = file.read(exported).metadata
    minimum = {"ss_v2", "ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha"}
    assert minimum | {"ss_network_args", "sshs_model_hash", "sshs_legacy_hash"} <= entries.keys()
    assert entries["ss_v2"] == "False"
    assert entries["ss_base_model_version"] == "sd_v1"
    assert entries["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert entries["modelspec.title"] == entries["ss_output_name"] == "my_style"
    assert entries["modelspec.date"] == "2023-11-14T23:13:20+00:00"
    assert float(entries["ss_training_started_at"]) == 1700000000.5
    assert json.loads(entries["ss_tag_frequency"]) == {"2_my_style": {"red house": 1, "oil": 2, "tree": 1}}
    assert json.loads(entries["ss_bucket_info"])["buckets"]["0"] == {"resolution": [448, 576], "count": 2}
    assert json.loads(entries["ss_dataset_dirs"])["style_train"]["img_count"] == 5
    assert list(entries)[-3:] == list(metadata.DATES)


def test_the_hash_is_of_the_bytes_after_the_header(exported, live, tmp_path):
    raw = exported.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    entries = json.loads(raw[8 : 8 + length])["__metadata__"]
    assert raw[8:10] == b'{"'
    assert (8 + length) % 8 == 0
    assert entries["sshs_model_hash"] == hashlib.sha256(raw[8 + length :]).hexdigest()
    legacy = hashlib.sha256(b"").hexdigest()[:8]
    assert len(raw) < 2**20
    assert entries["sshs_legacy_hash"] == legacy == "e3b0c442"
    again = tmp_path / "again.safetensors"
    file.write(again, inject.state(live[1]), SD15, ALPHA, torch.float32, metadata.build(FACTS, SD15))
    assert again.read_bytes() == raw
    assert [path.name for path in tmp_path.iterdir()] == ["again.safetensors"]


def test_the_legacy_hash_of_a_large_file_is_that_of_sd_scripts(tmp_path):
    """As sd-scripts: hash a file saved with the `ss_` entries alone (one of them: the library shuffles several)."""
    module = torch.nn.ModuleDict({"to_q": torch.nn.Linear(70_000, 8)})
    inject.adapt(module, ["to_q"], RANK, ALPHA, seed=0)
    path, theirs = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    entries = {"ss_v2": "False", "modelspec.title": "x"}
    file.write(path, inject.state({"unet": module}), SD15, ALPHA, torch.float32, entries)
    save_file(load_file(path), theirs, metadata={"ss_v2": "False"})
    expected = hashlib.sha256(theirs.read_bytes()[0x100000:0x110000]).hexdigest()[:8]
    assert file.read(path).metadata["sshs_legacy_hash"] == expected != "e3b0c442"


def test_tags_cannot_fill_the_header(live, tmp_path):
    many = {f"tag é {n}": n for n in range(100_000)}
    facts = metadata.TrainingFacts(
        output_name="x", network_dim=4, network_alpha=2, training_started_at=0, tag_frequency={"1_x": many, "1_y": {}}
    )
    path = tmp_path / "a.safetensors"
    file.write(path, inject.state(live[1]), SD15, ALPHA, torch.float32, metadata.build(facts, SD15))
    kept = json.loads(file.read(path).metadata["ss_tag_frequency"])
    assert int.from_bytes(path.read_bytes()[:8], "little") < 2**20
    assert kept.keys() == {"1_x", "1_y"}
    assert len(kept["1_x"]) > 1000
    assert min(kept["1_x"].values()) == 100_000 - len(kept["1_x"])  # the most frequent stay


def test_a_text_layer_trained_in_part_is_written_whole(tmp_path):
    pipe = tiny.sd15()
    modules = tiny.adapted(SD15, pipe, ["q_proj", "v_proj"], components=("text_encoder",))
    path = tmp_path / "a.safetensors"
    file.write(path, inject.state(modules), SD15, ALPHA, torch.float32, {})
    verify(path, modules, SD15, ALPHA, torch.float32)
    layers = file.read(path).layers
    assert set(layers) == {f"lora_te_text_model_encoder_layers_{n}_self_attn_{p}" for n in range(12) for p in QKVO}
    for name, layer in layers.items():
        assert layer.up.any() == name.endswith(("q_proj", "v_proj"))
    fresh = tiny.sd15()
    fresh.load_lora_weights(str(tmp_path), weight_name="a.safetensors")
    torch.testing.assert_close(tiny.outputs(SD15, fresh)[0], tiny.outputs(SD15, pipe)[0], rtol=1e-5, atol=1e-5)


def test_files_that_are_not_ours_are_refused_with_a_reason(exported, tmp_path):
    bad = tmp_path / "bad.safetensors"
    with pytest.raises(PatinaError, match="no such file"):
        file.read(bad)
    for content, said in (
        (b"", "0 bytes"),
        (struct.pack("<Q", 2**62) + b"{}", "not a whole"),
        (struct.pack("<Q", 2) + b"xx", "not JSON"),
        (struct.pack("<Q", 2) + b"[]", "no JSON object"),
        (exported.read_bytes()[:-4], "not a sound"),
    ):
        bad.write_bytes(content)
        with pytest.raises(PatinaError, match=said):
            file.read(bad)
    ones = torch.ones(2, 2)
    for tensors, said in (
        ({"a.hada_w1_a": ones}, "a.hada_w1_a is no plain LoRA"),
        ({"a.lora_up.weight": ones, "a.alpha": torch.tensor(1.0)}, "a has no lora_down.weight"),
        ({"a.lora_up.weight": ones, "a.lora_down.weight": torch.ones(3, 2), "a.alpha": torch.tensor(1.0)}, "shapes"),
    ):
        save_file(tensors, bad)
        with pytest.raises(PatinaError, match=said):
            file.read(bad)


def test_what_rounding_takes_from_alpha_is_given_to_up(tmp_path):
    """bf16 holds 0.7 as 0.69921875, a thousandth too little: ten times more than the mean over 4000 weights hides."""
    module = torch.nn.ModuleDict({"to_q": torch.nn.Linear(8, 1000)})
    inject.adapt(module, ["to_q"], RANK, 0.7, seed=0)
    b = torch.nn.init.normal_(inject.adapters(module)["to_q"].B, generator=torch.Generator().manual_seed(0))
    file.write(tmp_path / "a.safetensors", inject.state({"unet": module}), SD15, 0.7, torch.bfloat16, {})
    layer = file.read(tmp_path / "a.safetensors").layers["lora_unet_to_q"]
    share = layer.alpha * (layer.up.float() * b).sum() / (0.7 * b.square().sum())
    assert layer.alpha == 0.69921875
    assert abs(share.item() - 1) < 1e-4


def test_an_alpha_that_the_file_cannot_hold_is_refused(live, tmp_path):
    with pytest.raises(PatinaError, match="lora_alpha"):
        file.write(tmp_path / "a.safetensors", inject.state(live[1]), SD15, 1e6, torch.float16, {})
    assert not list(tmp_path.iterdir())
