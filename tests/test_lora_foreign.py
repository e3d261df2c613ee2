"""LoRA files as other programs write them are read as the plain formula; damaged ones are refused in a sentence."""

import json
import struct
from pathlib import Path

import pytest
import tiny
import torch
from peft import LoraConfig
from safetensors.torch import save_file

from patina.errors import PatinaError
from patina.lora import foreign
from patina.lora.blocks import sd_ldm, sdxl_diffusers, sdxl_ldm
from patina.lora.delta import algorithm, delta, grown, thin
from patina.lora.names import Place

PROJ = Place("unet", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q")
KOHYA = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
CONV = Place("unet", "down_blocks.1.resnets.0.conv1")
KOHYA_CONV = "lora_unet_down_blocks_1_resnets_0_conv1"
OUT, IN, R = 6, 4, 3


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape) * len(shape)))


def read_one(folder: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None):
    """Write the tensors and read the only layer back, with its place."""
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "a.safetensors", metadata)
    lora = foreign.read_any(folder / "a.safetensors")
    assert not lora.unknown
    ((place, change),) = lora.changes.items()
    return place, change


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.0), (torch.tensor(6.0), 2.0), (torch.tensor([1.5]), 0.5)])
def test_kohyas_spelling(tmp_path, dtype, alpha, scale):
    down, up = draw(R, IN).to(dtype), draw(OUT, R).to(dtype)
    tensors = {f"{KOHYA}.lora_down.weight": down, f"{KOHYA}.lora_up.weight": up}
    if alpha is not None:
        tensors[f"{KOHYA}.alpha"] = alpha.to(dtype)
    place, change = read_one(tmp_path, tensors)
    assert place == PROJ
    expected = scale * torch.einsum("or,ri->oi", up.double(), down.double())
    torch.testing.assert_close(delta(change), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.mm(*thin(change)), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("stem", "down", "up"),
    [
        (f"unet.{PROJ.path}", "lora_A.weight", "lora_B.weight"),
        (f"unet.{PROJ.path}", "lora.down.weight", "lora.up.weight"),
        (f"base_model.model.{PROJ.path}", "lora_A.weight", "lora_B.weight"),
        (f"unet.{PROJ.path}", "lora_A.default.weight", "lora_B.default.weight"),
    ],
)
def test_dotted_spellings_of_the_unet(tmp_path, stem, down, up):
    place, change = read_one(tmp_path, {f"{stem}.{down}": draw(R, IN), f"{stem}.{up}": draw(OUT, R)})
    assert place == PROJ
    torch.testing.assert_close(delta(change), draw(OUT, R).double() @ draw(R, IN).double(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("key", "component", "path"),
    [
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_q_lora", "unet", "attn2.to_q"),
        ("mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_out_lora", "unet", "attn2.to_out.0"),
        ("text_encoder.text_model.encoder.layers.3.self_attn.to_q_lora", "text_encoder", "self_attn.q_proj"),
        ("text_encoder.text_model.encoder.layers.3.self_attn.to_out_lora", "text_encoder", "self_attn.out_proj"),
        ("text_encoder.text_model.encoder.layers.3.self_attn.k_proj.lora_linear_layer", "text_encoder", "k_proj"),
        ("text_encoder.encoder.layers.3.mlp.fc1.lora", "text_encoder", "layers.3.mlp.fc1"),
        ("text_encoder_2.text_model.encoder.layers.31.mlp.fc2.lora", "text_encoder_2", "layers.31.mlp.fc2"),
    ],
)
def test_older_spellings_of_diffusers(tmp_path, key, component, path):
    place, _ = read_one(tmp_path, {f"{key}.down.weight": draw(R, IN), f"{key}.up.weight": draw(OUT, R)})
    assert place.component == component
    assert place.path.endswith(path)
    assert not place.path.startswith("text_model")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (
            "input_blocks_4_1_transformer_blocks_1_attn2_to_out_0",
            "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_out.0",
        ),
        ("input_blocks_8_1_proj_in", "down_blocks.2.attentions.1.proj_in"),
        (
            "middle_block_1_transformer_blocks_9_ff_net_0_proj",
            "mid_block.attentions.0.transformer_blocks.9.ff.net.0.proj",
        ),
        ("middle_block_2_in_layers_2", "mid_block.resnets.1.conv1"),
        ("output_blocks_5_1_transformer_blocks_0_ff_net_2", "up_blocks.1.attentions.2.transformer_blocks.0.ff.net.2"),
        ("output_blocks_2_2_conv", "up_blocks.0.upsamplers.0.conv"),
        ("input_blocks_3_0_op", "down_blocks.0.downsamplers.0.conv"),
        ("output_blocks_8_0_skip_connection", "up_blocks.2.resnets.2.conv_shortcut"),
        ("input_blocks_1_0_emb_layers_1", "down_blocks.0.resnets.0.time_emb_proj"),
        ("label_emb_0_2", "add_embedding.linear_2"),
        (
            "up_blocks_0_attentions_1_transformer_blocks_7_attn1_to_v",
            "up_blocks.0.attentions.1.transformer_blocks.7.attn1.to_v",
        ),
    ],
)
def test_sdxl_in_ldms_names_and_in_diffusers(tmp_path, name, path):
    tensors = {f"lora_unet_{name}.lora_down.weight": draw(R, IN), f"lora_unet_{name}.lora_up.weight": draw(OUT, R)}
    assert read_one(tmp_path, tensors)[0] == Place("unet", path)


def test_block_names_lead_back(tmp_path):
    """Counts are those of the grammar: 192 + 72 layers of SD1.5 without convolutions, 722 + 72 + 192 of SDXL."""
    for layout, of_unet, of_text in (("sd15", 192, [72]), ("sdxl", 722, [72, 192])):
        found = foreign.layers(foreign.LAYOUTS[layout])
        narrow = [path for path in found["unet"] if ".attentions." in path]
        assert len(narrow) == of_unet
        assert [len(paths) for component, paths in found.items() if component != "unet"] == of_text
        for path in found["unet"]:
            assert sdxl_diffusers(sdxl_ldm(path)) == path == sdxl_diffusers(sd_ldm(path))
    assert sd_ldm("up_blocks.0.upsamplers.0.conv.weight") == "output_blocks.2.1.conv.weight"
    assert sdxl_ldm("up_blocks.0.upsamplers.0.conv.bias") == "output_blocks.2.2.conv.bias"
    modules = {"lora_unet_" + path.replace(".", "_"): path for path, _ in tiny.sd15().unet.named_modules()}
    known = foreign.known_names()
    assert len({name for name in modules if name in known}) == 192 + 85 + 4  # equal widths: one shortcut less
    assert all(known[name].path == modules[name] for name in modules if name in known)


def test_locon_and_its_tucker_core(tmp_path):
    down, up, mid = draw(R, IN, 3, 3), draw(OUT, R, 1, 1), draw(R, R, 3, 3)
    tensors = {f"{KOHYA_CONV}.lora_down.weight": down, f"{KOHYA_CONV}.lora_up.weight": up}
    place, change = read_one(tmp_path, {**tensors, f"{KOHYA_CONV}.alpha": torch.tensor(1.0)})
    assert (place, algorithm(change)) == (CONV, "lora")
    expected = torch.einsum("or,rikl->oikl", up[..., 0, 0].double(), down.double()) / R
    torch.testing.assert_close(delta(change), expected.flatten(1), rtol=1e-12, atol=1e-12)
    small = draw(R, IN, 1, 1)
    tensors |= {f"{KOHYA_CONV}.lora_down.weight": small, f"{KOHYA_CONV}.lora_mid.weight": mid}
    place, change = read_one(tmp_path, tensors)
    assert algorithm(change) == "lora (Tucker)"
    x = draw(2, IN, 7, 7).double()  # as three convolutions, which is what LyCORIS trains
    by_layers = torch.nn.functional.conv2d(torch.nn.functional.conv2d(x, small.double()), mid.double())
    by_layers = torch.nn.functional.conv2d(by_layers, up.double())
    at_once = torch.nn.functional.conv2d(x, delta(change).view(OUT, IN, 3, 3))
    torch.testing.assert_close(at_once, by_layers, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(torch.mm(*thin(change)), delta(change), rtol=1e-12, atol=1e-12)


def test_loha(tmp_path):
    a1, b1, a2, b2 = draw(OUT, R), draw(R, IN), draw(OUT, R, seed=1), draw(R, IN, seed=1)
    parts = {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2, "alpha": torch.tensor(6.0)}
    _, change = read_one(tmp_path, {f"{KOHYA}.{part}": tensor for part, tensor in parts.items()})
    assert algorithm(change) == "loha"
    a1, b1, a2, b2 = (tensor.double() for tensor in (a1, b1, a2, b2))
    expected = 2.0 * torch.einsum("or,ri,os,si->oi", a1, b1, a2, b2)
    torch.testing.assert_close(delta(change), expected, rtol=1e-12, atol=1e-12)


def test_loha_with_tucker_cores(tmp_path):
    t1, t2, a1, a2 = draw(R, R, 3, 3), draw(R, R, 3, 3, seed=1), draw(R, OUT), draw(R, OUT, seed=1)
    b1, b2 = draw(R, IN), draw(R, IN, seed=1)
    parts = {"hada_t1": t1, "hada_t2": t2, "hada_w1_a": a1, "hada_w2_a": a2, "hada_w1_b": b1, "hada_w2_b": b2}
    _, change = read_one(tmp_path, {f"{KOHYA_CONV}.{part}": tensor for part, tensor in parts.items()})
    assert algorithm(change) == "loha (Tucker)"
    expected = torch.zeros(OUT, IN, 3, 3, dtype=torch.float64)
    for o in range(OUT):
        for i in range(IN):
            one = sum(a1[p, o].double() * b1[q, i].double() * t1[p, q].double() for p in range(R) for q in range(R))
            two = sum(a2[p, o].double() * b2[q, i].double() * t2[p, q].double() for p in range(R) for q in range(R))
            expected[o, i] = one * two
    torch.testing.assert_close(delta(change).view(OUT, IN, 3, 3), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("split_first", [False, True])
@pytest.mark.parametrize("second", ["whole", "split"])
def test_lokr(tmp_path, split_first, second):
    """kron([2,2], [3,2]) is [6,4]."""
    w1, w2 = draw(2, 2).double(), draw(3, 2).double()
    parts = {"lokr_w1": draw(2, 2), "lokr_w2": draw(3, 2), "alpha": torch.tensor(5.0)}
    scale = 1.0  # of two whole factors the alpha is not used
    if split_first:
        parts |= {"lokr_w1_a": draw(2, 1), "lokr_w1_b": draw(1, 2)}
        del parts["lokr_w1"]
        w1, scale = draw(2, 1).double() * draw(1, 2).double(), 5.0
    if second == "split":
        parts |= {"lokr_w2_a": draw(3, 2, seed=4), "lokr_w2_b": draw(2, 2, seed=4)}
        del parts["lokr_w2"]
        w2, scale = draw(3, 2, seed=4).double() @ draw(2, 2, seed=4).double(), 2.5
    _, change = read_one(tmp_path, {f"{KOHYA}.{part}": tensor for part, tensor in parts.items()})
    expected = torch.tensor([[w1[o // 3, i // 2] * w2[o % 3, i % 2] for i in range(4)] for o in range(6)]) * scale
    assert algorithm(change) == "lokr"
    torch.testing.assert_close(delta(change), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("how", ["whole", "split", "tucker"])
def test_lokr_of_a_convolution(tmp_path, how):
    """[2,2] x [3,2,3,3] -> [6,4,3,3]; LyCORIS keeps the second whole, as [3,r] @ [r,2*9], or as a Tucker product."""
    core, a, b = draw(R, R, 3, 3), draw(R, 3), draw(R, 2)
    w2, parts, scale = draw(3, 2, 3, 3), {"lokr_w2": draw(3, 2, 3, 3)}, 1.0
    if how == "split":
        parts, scale = {"lokr_w2_a": draw(3, R), "lokr_w2_b": draw(R, 18)}, 2.0 / R
        w2 = (draw(3, R).double() @ draw(R, 18).double()).view(3, 2, 3, 3)
    if how == "tucker":
        parts, scale = {"lokr_t2": core, "lokr_w2_a": a, "lokr_w2_b": b}, 2.0 / R
        w2 = sum(
            core[p, q].double() * a[p].double()[:, None, None, None] * b[q].double()[None, :, None, None]
            for p in range(R)
            for q in range(R)
        )
    parts |= {"lokr_w1": draw(2, 2), "alpha": torch.tensor(2.0)}
    _, change = read_one(tmp_path, {f"{KOHYA_CONV}.{part}": tensor for part, tensor in parts.items()})
    expected = torch.zeros(6, 4, 3, 3, dtype=torch.float64)
    for o in range(6):
        for i in range(4):
            expected[o, i] = draw(2, 2)[o // 3, i // 2].double() * w2[o % 3, i % 2].double() * scale
    torch.testing.assert_close(delta(change).view(6, 4, 3, 3), expected, rtol=1e-11, atol=1e-12)


def test_a_whole_difference(tmp_path):
    _, change = read_one(tmp_path, {f"{KOHYA_CONV}.diff": draw(OUT, IN, 3, 3), f"{KOHYA_CONV}.diff_b": draw(OUT)})
    assert algorithm(change) == "full"
    torch.testing.assert_close(delta(change).view(OUT, IN, 3, 3), draw(OUT, IN, 3, 3).double())
    torch.testing.assert_close(grown(change, torch.ones(OUT, IN, 3, 3)), draw(OUT, IN, 3, 3).double())


@pytest.mark.parametrize("side", ["out", "in"])
@pytest.mark.parametrize("kernel", [(), (3, 3)])
def test_dora_of_either_axis(tmp_path, side, kernel):
    name, ones = (KOHYA_CONV, (1, 1)) if kernel else (KOHYA, ())
    down, up, weight = draw(R, IN, *kernel), draw(OUT, R, *ones), draw(OUT, IN, *kernel, seed=9)
    magnitude = draw(OUT if side == "out" else IN, seed=3).abs() + 1
    parts = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(1.5)}
    parts["dora_scale"] = magnitude.reshape((-1, 1, *ones) if side == "out" else (1, -1, *ones))
    _, change = read_one(tmp_path, {f"{name}.{part}": tensor for part, tensor in parts.items()})
    assert algorithm(change) == "dora + lora"
    assert thin(change) is None
    merged = weight.double() + 0.5 * torch.tensordot(up.flatten(1).double(), down.double(), dims=1)
    expected = torch.empty_like(merged)
    for n in range(len(magnitude)):
        part = merged[n] if side == "out" else merged[:, n]
        grown_part = magnitude[n].double() * part / part.square().sum().sqrt()
        (expected if side == "out" else expected.transpose(0, 1))[n] = grown_part
    torch.testing.assert_close(weight.double() + grown(change, weight), expected, rtol=1e-12, atol=1e-12)


def test_pefts_own_dora_is_along_the_outputs(tmp_path):
    stem = f"unet.{PROJ.path}"
    parts = {"lora_A.weight": draw(R, 6), "lora_B.weight": draw(6, R), "lora_magnitude_vector": draw(6).abs() + 1}
    _, change = read_one(tmp_path, {f"{stem}.{part}": tensor for part, tensor in parts.items()})
    weight = draw(6, 6, seed=2)
    norms = (weight.double() + grown(change, weight)).norm(dim=1)
    torch.testing.assert_close(norms, (draw(6).abs() + 1).double(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rslora", [False, True])
def test_pefts_settings_decide_alpha(tmp_path, rslora):
    """As peft scales it: a pattern wins over lora_alpha, and rsLoRA divides by the root of the rank."""
    config = LoraConfig(r=R, lora_alpha=7, alpha_pattern={"attn1.to_q": 12}, use_rslora=rslora)
    entries = {f"unet.{key}": value for key, value in config.to_dict().items() if key in vars(config)}
    metadata = {"lora_adapter_metadata": json.dumps(entries, default=str)}
    for path, alpha in ((PROJ.path, 12), (PROJ.path.replace("to_q", "to_v"), 7)):
        tensors = {f"unet.{path}.lora_A.weight": draw(R, IN), f"unet.{path}.lora_B.weight": draw(OUT, R)}
        _, change = read_one(tmp_path, tensors, metadata)
        expected = draw(OUT, R).double() @ draw(R, IN).double() * alpha / (R**0.5 if rslora else R)
        torch.testing.assert_close(delta(change), expected, rtol=1e-12, atol=1e-12)


def test_a_file_that_diffusers_wrote(tmp_path):
    pipe = tiny.sd15()
    pipe.unet.add_adapter(LoraConfig(r=R, lora_alpha=8, init_lora_weights=False, target_modules=["to_q", "proj_in"]))
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import get_peft_model_state_dict

    state = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipe.unet))
    config = pipe.unet.peft_config["default"].to_dict()
    pipe.save_lora_weights(tmp_path, unet_lora_layers=state, unet_lora_adapter_metadata=config)
    lora = foreign.read_any(tmp_path / "pytorch_lora_weights.safetensors")
    assert not lora.unknown
    assert len(lora.changes) == 32 + 16
    for place, change in lora.changes.items():
        live = pipe.unet.get_submodule(place.path).get_delta_weight("default").double()
        torch.testing.assert_close(delta(change), live.flatten(1), rtol=1e-5, atol=1e-6)


def test_what_is_not_known_is_told(tmp_path):
    known = {f"{KOHYA}.lora_down.weight": draw(R, IN), f"{KOHYA}.lora_up.weight": draw(OUT, R)}
    other = {"lora_unet_nowhere.alpha": draw(1), f"{KOHYA_CONV}.oft_blocks": draw(2, 2), f"{KOHYA_CONV}.alpha": draw(1)}
    save_file(known | other, tmp_path / "a.safetensors")
    lora = foreign.read_any(tmp_path / "a.safetensors")
    assert set(lora.changes) == {PROJ}
    assert set(lora.unknown) == set(other)


def packed(entries: object, payload: bytes = b"") -> bytes:
    text = (entries if isinstance(entries, str) else json.dumps(entries)).encode()
    return struct.pack("<Q", len(text)) + text + payload


def entry(begin: int, end: int) -> dict:
    return {"dtype": "F32", "shape": [(end - begin) // 4], "data_offsets": [begin, end]}


TWICE = '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a whole safetensors file"),
        (b"\x10\x00", "not a whole safetensors file"),
        (struct.pack("<Q", 2 * 10**9) + b"{}", "not a whole safetensors file"),
        (struct.pack("<Q", 5000) + b'{"a":', "not a whole safetensors file"),
        (b"PK\x03\x04" + bytes(100), "this is a pickle"),
        (b"\x80\x02}q\x00." + bytes(100), "this is a pickle"),
        (packed(TWICE, bytes(8)), "one name occurs twice"),
        (packed({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), "tensors a and b overlap"),
        (packed({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)), "4 bytes before tensor b belong to none"),
        (packed({"a": entry(0, 8)}, bytes(4)), "4 bytes of tensors where its header says 8"),
        (packed({"a": {**entry(0, 8), "shape": [3]}}, bytes(8)), "does not fit into 8 bytes"),
        (packed({"a": {"dtype": "F32"}}, bytes(8)), "tensor a has no type, shape or place"),
        (packed({"a": {**entry(0, 8), "dtype": "Q7"}}, bytes(8)), "of the type Q7, which is unknown here"),
        (packed({"__metadata__": {"a": 1}}), "metadata are not texts"),
        (packed("[" * 100_000), "not JSON"),
        (packed({"model.weight": entry(0, 4)}, bytes(4)), "none of its 1 tensors is a LoRA's"),
        (packed({}), "none of its 0 tensors"),
    ],
)
def test_damaged_files_are_refused_in_a_sentence(tmp_path, content, said):
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(content)
    with pytest.raises(PatinaError, match=said) as refused:
        foreign.read_any(bad)
    assert str(refused.value).startswith(str(bad))
    assert "\n" not in str(refused.value)


def test_layers_whose_tensors_do_not_fit_are_refused(tmp_path):
    for tensors, said in (
        ({"lora_down.weight": draw(R, IN), "lora_up.weight": draw(OUT, 5)}, "do not fit each other"),
        ({"lora_down.weight": draw(R, IN), "lora_up.weight": draw(OUT, R), "alpha": draw(2)}, "not one number"),
        ({"lora_down.weight": draw(R, IN), "lora_up.weight": draw(OUT, R), "dora_scale": draw(2, 2)}, "do not fit"),
    ):
        save_file({f"{KOHYA}.{part}": tensor for part, tensor in tensors.items()}, tmp_path / "a.safetensors")
        with pytest.raises(PatinaError, match=said):
            foreign.read_any(tmp_path / "a.safetensors")
