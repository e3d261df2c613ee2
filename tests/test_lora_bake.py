"""A checkpoint with a LoRA baked in is the base plus the plain formula, in any layout; extract is the way back."""

from pathlib import Path

import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors.torch import load_file, save_file
from test_lora_tool import deltas, lora

from patina.errors import PatinaError
from patina.families.sd15 import SD15
from patina.lora import inject
from patina.lora.basefile import open_base
from patina.lora.blocks import sd_ldm, sdxl_ldm
from patina.lora.file import write
from patina.lora.names import Place
from patina.safeheader import read_header

QUERY = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
KOHYA = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
WIDTH = 8


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def sdxl_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        block_out_channels=(8, 16, 16),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=8,
        cross_attention_dim=WIDTH,
        norm_num_groups=4,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=32,
    )


@pytest.mark.parametrize(("unet", "renamed"), [(lambda: tiny.sd15().unet, sd_ldm), (sdxl_unet, sdxl_ldm)])
def test_ldms_names_are_those_that_diffusers_converts(unet, renamed):
    """Every tensor of the UNet, norms and biases too, comes back under its own name from diffusers' own conversion."""
    model = unet()
    state = model.state_dict()
    ldm = {f"model.diffusion_model.{renamed(key)}": tensor for key, tensor in state.items()}
    config = {**model.config, "layers_per_block": 2}
    if model.config.addition_embed_type:
        config["class_embed_type"] = None
    back = convert_ldm_unet_checkpoint(ldm, config)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in state.items())


def text_encoder(start: str, layers: int, fused: bool, seed: int) -> dict[str, torch.Tensor]:
    """A CLIP's layers in transformers' names, or in open_clip's, where query, key and value are one tensor."""
    tensors = {}
    for n in range(layers):
        if not fused:
            stem = f"{start}encoder.layers.{n}"
            for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"):
                tensors[f"{stem}.{name}.weight"] = draw(WIDTH, WIDTH, seed=seed + len(tensors))
            names = ("mlp.fc1", "mlp.fc2")
        else:
            stem = f"{start}resblocks.{n}"
            tensors[f"{stem}.attn.in_proj_weight"] = draw(3 * WIDTH, WIDTH, seed=seed + len(tensors))
            tensors[f"{stem}.attn.out_proj.weight"] = draw(WIDTH, WIDTH, seed=seed + len(tensors))
            names = ("mlp.c_fc", "mlp.c_proj")
        tensors[f"{stem}.{names[0]}.weight"] = draw(16, WIDTH, seed=seed + len(tensors))
        tensors[f"{stem}.{names[1]}.weight"] = draw(WIDTH, 16, seed=seed + len(tensors))
    return tensors


@pytest.fixture(scope="module")
def xl(tmp_path_factory) -> Path:
    """A tiny SDXL in LDM layout with the texts of a checkpoint's header, and tensors that no LoRA touches."""
    unet = {f"model.diffusion_model.{sdxl_ldm(key)}": tensor for key, tensor in sdxl_unet().state_dict().items()}
    tensors = unet | text_encoder("conditioner.embedders.0.transformer.text_model.", 12, fused=False, seed=100)
    tensors |= text_encoder("conditioner.embedders.1.model.transformer.", 32, fused=True, seed=200)
    tensors["first_stage_model.decoder.conv_in.weight"] = draw(4, 4, 3, 3)
    tensors["model_ema.decay"] = torch.tensor(3)
    path = tmp_path_factory.mktemp("xl") / "base.safetensors"
    save_file(tensors, path, {"modelspec.title": "a base", "sshs_model_hash": "of old"})
    return path


def plain(name: str, rows: int, columns: int, seed: int) -> dict[str, torch.Tensor]:
    return {
        f"{name}.lora_up.weight": draw(rows, 2, seed=seed),
        f"{name}.lora_down.weight": draw(2, columns, seed=seed),
        f"{name}.alpha": torch.tensor(1.0),
    }


@pytest.fixture(scope="module")
def xl_lora(tmp_path_factory) -> Path:
    tensors = plain("lora_unet_output_blocks_1_1_transformer_blocks_9_attn2_to_out_0", 16, 16, 1)
    tensors |= plain("lora_unet_input_blocks_1_0_emb_layers_1", 8, 32, 2)
    for name in ("q", "v", "out"):
        tensors |= plain(f"lora_te2_text_model_encoder_layers_31_self_attn_{name}_proj", WIDTH, WIDTH, 3 + ord(name[0]))
    tensors |= plain("lora_te1_text_model_encoder_layers_0_mlp_fc2", WIDTH, 16, 9)
    path = tmp_path_factory.mktemp("xl_lora") / "a.safetensors"
    save_file(tensors, path)
    return path


def test_a_single_file_of_sdxl(xl, xl_lora, tmp_path, capsys):
    target = tmp_path / "baked.safetensors"
    assert lora(["verify", str(xl_lora), "--base", str(xl)]) == 0
    assert lora(["bake", str(xl), f"{xl_lora}:0.5", "--output", str(target)]) == 0
    assert "base.safetensors with 1 LoRAs in 6 layers" in capsys.readouterr().out
    before, after, tensors = load_file(xl), load_file(target), load_file(xl_lora)

    def grown(name: str) -> torch.Tensor:
        return 0.25 * tensors[f"{name}.lora_up.weight"] @ tensors[f"{name}.lora_down.weight"]

    text = "lora_te2_text_model_encoder_layers_31_self_attn"
    rows = [grown(f"{text}_q_proj"), torch.zeros(WIDTH, WIDTH), grown(f"{text}_v_proj")]
    expected = {
        "model.diffusion_model.output_blocks.1.1.transformer_blocks.9.attn2.to_out.0.weight": grown(
            "lora_unet_output_blocks_1_1_transformer_blocks_9_attn2_to_out_0"
        ),
        "model.diffusion_model.input_blocks.1.0.emb_layers.1.weight": grown("lora_unet_input_blocks_1_0_emb_layers_1"),
        "conditioner.embedders.1.model.transformer.resblocks.31.attn.in_proj_weight": torch.cat(rows),
        "conditioner.embedders.1.model.transformer.resblocks.31.attn.out_proj.weight": grown(f"{text}_out_proj"),
        "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc2.weight": grown(
            "lora_te1_text_model_encoder_layers_0_mlp_fc2"
        ),
    }
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        if key in expected:
            torch.testing.assert_close(after[key], tensor + expected[key], rtol=1e-6, atol=1e-6)
        else:
            assert torch.equal(after[key], tensor), key
    assert read_header(target).metadata == {"modelspec.title": "a base"}


def test_extract_is_the_way_back(xl, xl_lora, tmp_path, capsys):
    lora(["bake", str(xl), str(xl_lora), "--output", str(tmp_path / "baked.safetensors")])
    found = tmp_path / "found.safetensors"
    tuned = str(tmp_path / "baked.safetensors")
    assert lora(["extract", str(xl), tuned, str(found), "--rank", "2", "--dtype", "fp32"]) == 0
    assert "7 layers" in capsys.readouterr().out  # the key projection stands beside its siblings, and is zero
    original, back = deltas(xl_lora), deltas(found)
    missing = Place("text_encoder_2", "encoder.layers.31.self_attn.k_proj")
    assert back.keys() == original.keys() | {missing}
    assert not back[missing].any()
    for place, expected in original.items():
        torch.testing.assert_close(back[place], expected, rtol=1e-4, atol=1e-5)
    names = {key.partition(".")[0] for key in load_file(found)}
    assert "lora_unet_output_blocks_1_1_transformer_blocks_9_attn2_to_out_0" in names
    with pytest.raises(PatinaError, match="differ in no layer"):
        lora(["extract", str(xl), str(xl), str(tmp_path / "no.safetensors"), "--rank", "2"])


@pytest.fixture(scope="module")
def sd15(tmp_path_factory) -> Path:
    """A folder with the tiny SD1.5 in diffusers layout and a LoRA for it."""
    folder = tmp_path_factory.mktemp("sd15")
    tiny.save_sd15(folder / "base")
    write(folder / "a.safetensors", inject.state(tiny.adapted(SD15, tiny.sd15())), SD15, tiny.ALPHA, torch.float32, {})
    return folder


def test_a_folder_draws_as_the_base_with_the_lora_on_it(sd15, tmp_path):
    assert lora(["bake", str(sd15 / "base"), str(sd15 / "a.safetensors"), "--output", str(tmp_path / "baked")]) == 0
    live = tiny.sd15()
    tiny.adapted(SD15, live)
    baked = StableDiffusionPipeline.from_pretrained(tmp_path / "baked", safety_checker=None, local_files_only=True)
    plain_outputs = tiny.outputs(SD15, tiny.sd15())
    for one, other, base in zip(tiny.outputs(SD15, baked), tiny.outputs(SD15, live), plain_outputs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        assert (one - base).abs().max() > 0.01
    names = [sorted(path.relative_to(at) for path in at.rglob("*")) for at in (sd15 / "base", tmp_path / "baked")]
    assert names[0] == names[1]


def test_two_loras_at_once_are_the_sum_of_both(sd15, tmp_path):
    path = str(sd15 / "a.safetensors")
    for weights, name in ((("0.75", "-0.25"), "two"), (("0.5",), "one")):
        files = [f"{path}:{weight}" for weight in weights]
        lora(["bake", str(sd15 / "base"), *files, "--output", str(tmp_path / name)])
    weights = "unet/diffusion_pytorch_model.safetensors"
    one, two = load_file(tmp_path / "one" / weights), load_file(tmp_path / "two" / weights)
    for key, tensor in one.items():
        torch.testing.assert_close(two[key], tensor, rtol=1e-6, atol=1e-6)


def test_dora_loha_and_biases_in_half_precision(sd15, tmp_path):
    base = tmp_path / "half"
    pipe = tiny.sd15().to(dtype=torch.float16)
    pipe.save_pretrained(base)
    weight = pipe.unet.get_submodule(QUERY).weight.detach().double()
    conv = pipe.unet.mid_block.resnets[0].conv1
    parts = plain(KOHYA, *weight.shape, seed=4) | {f"{KOHYA}.dora_scale": draw(len(weight), 1).abs()}
    diff = {
        f"lora_unet_mid_block_resnets_0_conv1.{name}": draw(*p.shape)
        for name, p in (("diff", conv.weight), ("diff_b", conv.bias))
    }
    save_file(parts | diff, tmp_path / "a.safetensors")
    lora(["bake", str(base), str(tmp_path / "a.safetensors"), "--output", str(tmp_path / "baked")])
    after = load_file(tmp_path / "baked" / "unet" / "diffusion_pytorch_model.safetensors")
    merged = weight + 0.5 * parts[f"{KOHYA}.lora_up.weight"].double() @ parts[f"{KOHYA}.lora_down.weight"].double()
    rows = merged / merged.square().sum(1, keepdim=True).sqrt() * parts[f"{KOHYA}.dora_scale"].double()
    assert torch.equal(after[f"{QUERY}.weight"], rows.half())
    stem = "mid_block.resnets.0.conv1"
    for name, part in (("weight", "diff"), ("bias", "diff_b")):
        told = getattr(conv, name).double() + diff[f"lora_unet_mid_block_resnets_0_conv1.{part}"].double()
        assert torch.equal(after[f"{stem}.{name}"], told.half())


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (
            plain("lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q", 8, 8, 0),
            "has no layer unet down_blocks.1",
        ),
        (plain(KOHYA, 320, 320, 0), "has another size of unet mid_block"),
        ({f"{KOHYA}.diff": torch.full((32, 32), 1e300, dtype=torch.float64)}, "would not be finite in torch.float32"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_written(sd15, tmp_path, tensors, said):
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(PatinaError, match=said):
        lora(["bake", str(sd15 / "base"), str(tmp_path / "a.safetensors"), "--output", str(tmp_path / "baked")])
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_no_other_folder_is_written_over(sd15, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    command = ["bake", str(sd15 / "base"), str(sd15 / "a.safetensors"), "--output", str(tmp_path / "home")]
    with pytest.raises(PatinaError, match="--force"):
        lora(command)
    with pytest.raises(PatinaError, match="holds no model"):
        lora([*command, "--force"])
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"


def test_what_is_no_base_is_refused(sd15, tmp_path):
    with pytest.raises(PatinaError, match="no checkpoint of Stable Diffusion"):
        open_base(sd15 / "a.safetensors")
    with pytest.raises(PatinaError, match=r"holds no unet/\*.safetensors"):
        open_base(tmp_path)
