"""Bases as people have them: single files, folders and names are told apart, loaded whole, or refused with a reason."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import ldm
import pytest
import tiny
import torch
import transformers
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file

from patina.bases import signs
from patina.bases.find import find_base
from patina.bases.load import load_pipeline, size_note
from patina.bases.single import LAYOUTS
from patina.errors import PatinaError
from patina.families import FAMILIES

CPU = torch.device("cpu")
U = "model.diffusion_model."


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder and a single file of each family; the folders are the layouts that the tiny files are read by."""
    place = tmp_path_factory.mktemp("bases")
    for name, build in tiny.PIPELINES.items():
        pipe = build()
        pipe.save_pretrained(place / name)
        save(ldm.checkpoint(pipe), place / f"{name}.safetensors")
    return place


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


def save(weights, path: Path, metadata=None) -> Path:
    save_file({name: weight.contiguous().clone() for name, weight in weights.items()}, path, metadata)
    return path


def load(path: Path, world: Path, dtype=torch.float32, **how):
    return load_pipeline(find_base(str(path)), dtype, CPU, layouts=world, **how)


def components(pipe, family):
    return {name: getattr(pipe, name) for name in ("vae", family.denoiser, *family.text_encoders)}


def same_weights(ours, theirs, family) -> None:
    for name, part in components(theirs, family).items():
        expected, found = part.state_dict(), components(ours, family)[name].state_dict()
        assert expected.keys() == found.keys()
        for key, weight in expected.items():
            assert torch.equal(found[key], weight), f"{name}.{key}"


def test_a_single_file_is_the_same_model_bit_for_bit(family, world):
    pipe, original = load(world / f"{family.name}.safetensors", world), tiny.PIPELINES[family.name]()
    same_weights(pipe, original, family)
    for ours, theirs in zip(tiny.outputs(family, pipe), tiny.outputs(family, original), strict=True):
        torch.testing.assert_close(ours, theirs)  # mapped tensors lie unaligned in memory, where sums go another way
    for name, part in components(pipe, family).items():
        assert not part.training, name
        assert not any(weight.requires_grad for weight in part.parameters()), name
    for name in ("tokenizer", "tokenizer_2") if family.name == "sdxl" else ("tokenizer",):
        ours, theirs = (getattr(which, name)("a cat", padding="max_length").input_ids for which in (pipe, original))
        assert ours == theirs


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_file_is_cast_as_it_is_loaded(family, world, tmp_path, dtype):
    original = tiny.PIPELINES[family.name]()
    weights = {name: weight.to(dtype) for name, weight in ldm.checkpoint(original).items()}
    path = save(weights, tmp_path / "half.safetensors")
    same_weights(load(path, world), original.to(dtype).to(torch.float32), family)
    half = load(path, world, dtype=dtype)
    assert half.unet.dtype == half.text_encoder.dtype == dtype
    assert half.vae.dtype == torch.float32  # SDXL's overflows in fp16


@pytest.mark.parametrize("place", ["sdxl", "sdxl.safetensors"])
def test_the_autoencoder_is_not_rounded_on_its_way(place, world):
    pipe = load(world / place, world, dtype=torch.float16)
    assert pipe.unet.dtype == pipe.text_encoder_2.dtype == torch.float16
    assert all(torch.equal(w, pipe.vae.state_dict()[k]) for k, w in tiny.sdxl().vae.state_dict().items())


def test_a_folder_is_loaded_as_its_family(family, world):
    base = find_base(str(world / family.name))
    assert base.family is family
    same_weights(load_pipeline(base, torch.float32, CPU), tiny.PIPELINES[family.name](), family)


def test_averaged_weights_and_a_trainers_leavings_are_ignored(world, tmp_path):
    weights = ldm.checkpoint(tiny.sd15())
    junk = {f"model_ema.{name.replace('.', '')}": weight + 1 for name, weight in weights.items()}
    junk |= {"betas": torch.zeros(1000), "first_stage_model.loss.logvar": torch.zeros(())}
    path = save(weights | junk, tmp_path / "ema.safetensors")
    same_weights(load(path, world), tiny.sd15(), FAMILIES["sd15"])


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_text_encoders_of_an_early_transformers_are_read(name, world, tmp_path):
    weights = ldm.checkpoint(tiny.PIPELINES[name]())
    old = {key.replace("transformer.text_model.", "transformer."): weight for key, weight in weights.items()}
    assert old.keys() != weights.keys()
    same_weights(load(save(old, tmp_path / "old.safetensors"), world), tiny.PIPELINES[name](), FAMILIES[name])


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("sd15", {"unet": 859_520_964, "text_encoder": 123_060_480}),
        ("sd2", {"unet": 865_910_724, "text_encoder": 340_387_840}),
        ("sdxl", {"unet": 2_567_463_684, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840}),
    ],
)
def test_the_shipped_layouts_are_the_published_models(name, count):
    """Numbers of weights as published; every tensor of a published autoencoder is 83,653,863 numbers together."""
    index = json.loads((LAYOUTS / name / "model_index.json").read_text())
    with init_empty_weights():
        sizes = {"unet": UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(LAYOUTS / name / "unet"))}
        for part in FAMILIES[name].text_encoders:
            kind = getattr(transformers, index[part][1])
            sizes[part] = kind(transformers.CLIPTextConfig.from_pretrained(LAYOUTS / name / part))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(LAYOUTS / name / "vae"))
    assert {part: sum(w.numel() for w in model.parameters()) for part, model in sizes.items()} == count
    assert sum(w.numel() for w in vae.parameters()) == 83_653_863


def test_what_was_found_is_one_line(world):
    assert find_base(str(world / "sd15.safetensors")).says == (
        f"{world}/sd15.safetensors is sd15, one file with a VAE, predicts the noise (epsilon), as usual"
    )
    assert find_base(str(world / "sdxl")).says == (
        f"{world}/sdxl is sdxl, a diffusers folder, predicts the noise (epsilon), as its scheduler says"
    )
    says = find_base(str(world / "sd2.safetensors")).says
    assert says.endswith("which its header cannot tell and is assumed; if it is wrong, write noise.prediction: epsilon")


@pytest.mark.parametrize(
    ("metadata", "prediction", "expected", "side"),
    [
        (None, "auto", "v_prediction", 96),
        (None, "epsilon", "epsilon", 64),
        ({"modelspec.prediction_type": "epsilon"}, "auto", "epsilon", 64),
        ({"modelspec.prediction_type": "v"}, "auto", "v_prediction", 96),
        ({"modelspec.prediction_type": "epsilon"}, "v_prediction", "v_prediction", 96),
    ],
)
def test_what_a_single_sd2_predicts(metadata, prediction, expected, side, world, tmp_path):
    path = save(ldm.checkpoint(tiny.sd2()), tmp_path / "sd2.safetensors", metadata)
    base = find_base(str(path), prediction=prediction)
    pipe = load_pipeline(base, torch.float32, CPU, layouts=world)
    assert pipe.scheduler.config.prediction_type == expected
    assert FAMILIES["sd2"].objective(pipe.scheduler).prediction == expected
    assert pipe.unet.config.sample_size == side
    assert f"({expected})" in base.says


def test_a_file_that_marks_velocity_and_zero_snr_is_believed(world, tmp_path):
    weights = ldm.checkpoint(tiny.sdxl()) | {"v_pred": torch.empty(0), "ztsnr": torch.empty(0)}
    path = save(weights, tmp_path / "noob.safetensors")
    base = find_base(str(path))
    pipe = load_pipeline(base, torch.float32, CPU, layouts=world)
    objective = base.family.objective(pipe.scheduler)
    assert objective.prediction == "v_prediction"
    assert objective.alphas_cumprod[-1] == 0
    assert pipe.scheduler.config.timestep_spacing == "trailing"
    assert "zero terminal SNR" in base.says
    plain = load(world / "sdxl.safetensors", world)
    assert base.family.objective(plain.scheduler).alphas_cumprod[-1] > 0


def test_a_folders_prediction_can_be_overruled(world):
    for prediction, expected in (("auto", "v_prediction"), ("epsilon", "epsilon")):
        base = find_base(str(world / "sd2"), prediction=prediction)
        assert load_pipeline(base, torch.float32, CPU).scheduler.config.prediction_type == expected
        assert f"({expected})" in base.says


def test_a_wrong_family_is_refused_naming_what_it_is(family, world):
    for other in FAMILIES:
        for place in (world / family.name, world / f"{family.name}.safetensors"):
            if other == family.name:
                assert find_base(str(place), other).family is family
                continue
            with pytest.raises(
                PatinaError, match=rf"^family: {other}, but .* is {family.name}.*write family: {family.name}"
            ):
                find_base(str(place), other)


def wide(weights, channels: int):
    return weights | {f"{U}input_blocks.0.0.weight": torch.zeros(16, channels, 3, 3)}


def test_files_that_are_no_base_are_told_what_they_are(world, tmp_path):
    whole, xl = ldm.checkpoint(tiny.sd15()), ldm.checkpoint(tiny.sdxl())
    bare = {name.removeprefix(U): weight for name, weight in whole.items() if name.startswith(U)}
    label = {f"{U}label_emb.0.0.weight": torch.zeros(1), f"{U}output_blocks.11.0.in_layers.0.weight": torch.zeros(1)}
    cases = {
        "a LoRA and no base": {"lora_unet_x.lora_down.weight": torch.zeros(1)},
        "a LoRA and no base ": {"unet.x.lora_A.weight": torch.zeros(1)},
        "a ControlNet": {"control_model.time_embed.0.weight": torch.zeros(1)},
        "a textual inversion": {"emb_params": torch.zeros(1)},
        "a FLUX": {f"{U}double_blocks.0.img_mod.lin.weight": torch.zeros(1)},
        "a Stable Diffusion 3": {f"{U}joint_blocks.0.x_block.attn.qkv.weight": torch.zeros(1)},
        "one part of a diffusers folder": {"down_blocks.0.resnets.0.conv1.weight": torch.zeros(1)},
        "an inpainting model": wide(whole, 9),
        "an inpainting model,": wide(xl, 9),
        "edits pictures by instruction": wide(whole, 8),
        "does not take 4 channels": wide(whole, 5),
        "the SDXL refiner": {k: w for k, w in xl.items() if "embedders.0.tr" not in k} | label,
        "unCLIP": ldm.checkpoint(tiny.sd2()) | label,
        "an autoencoder alone": ldm.autoencoder(tiny.sd15().vae.state_dict()),
        "a UNet without the rest": bare,
        "a UNet without text encoders": {k: w for k, w in whole.items() if k.startswith(U)},
        "no Stable Diffusion checkpoint": {"weight": torch.zeros(1)},
    }
    for said, weights in cases.items():
        path = save(weights, tmp_path / "bad.safetensors")
        with pytest.raises(PatinaError, match=said.strip()) as caught:
            find_base(str(path))
        assert str(caught.value).startswith(f"base_model: {path} is ")
    assert signs.refusal({name: tuple(w.shape) for name, w in whole.items()}) is None


def test_folders_that_are_no_base_are_told_what_they_are(world, tmp_path):
    def changed(name: str, file: str, **entries) -> str:
        folder = tmp_path / f"{name}-{'-'.join(entries)}"
        shutil.copytree(world / name, folder)
        config = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(config | entries))
        return str(folder)

    cases = (
        (changed("sd15", "unet/config.json", in_channels=9), "is an inpainting model: its UNet takes 9 channels"),
        (changed("sdxl", "unet/config.json", in_channels=9), "is an inpainting model"),
        (changed("sdxl", "model_index.json", _class_name="FluxPipeline"), "is a FluxPipeline of a kind"),
        (changed("sdxl", "unet/config.json", addition_embed_type=None), "is a StableDiffusionXLPipeline of a kind"),
        (str(world), "holds no model_index.json"),
        (str(tmp_path / "none"), "no such file or folder"),
        ("none.safetensors", "no such file or folder"),
    )
    for place, said in cases:
        with pytest.raises(PatinaError, match=said):
            find_base(place)
    folder = Path(changed("sd15", "unet/config.json", x=1))
    for content, said in (("[]", "is no JSON object"), ("{", "is no JSON object")):
        (folder / "unet" / "config.json").write_text(content)
        with pytest.raises(PatinaError, match=said):
            find_base(str(folder))
    (folder / "unet" / "config.json").unlink()
    with pytest.raises(PatinaError, match=r"config\.json is missing; give a whole"):
        find_base(str(folder))


HUB = """
import sys, torch
from patina.bases.find import find_base
from patina.bases.load import load_pipeline
from patina.errors import PatinaError
try:
    base = find_base("someone/small")
    print(base.says)
    load_pipeline(base, torch.float32, torch.device("cpu"))
    find_base("someone/else")
except PatinaError as error:
    print(error)
"""


def test_a_name_on_the_hub_is_looked_up(world, tmp_path):
    """Offline, from what an earlier run fetched; a name that was not fetched gets a sentence."""
    shots = tmp_path / "models--someone--small"
    shutil.copytree(world / "sdxl", shots / "snapshots" / "abc")
    (shots / "refs").mkdir()
    (shots / "refs" / "main").write_text("abc")
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    said = subprocess.run([sys.executable, "-c", HUB], env=env, capture_output=True, text=True, check=True)
    found, missing = said.stdout.splitlines()
    assert found == "someone/small is sdxl, from the hub, predicts the noise (epsilon), as its scheduler says"
    assert missing.startswith("base_model: there is no path someone/else here, and the hub cannot be reached")


def test_a_resolution_far_below_the_bases_own_is_noted():
    pipe = tiny.sdxl()
    assert size_note(pipe, 1024) is size_note(pipe, 768) is None
    assert size_note(pipe, 512) == (
        "resolution: 512, but this base was trained on 1024 pixels; for its best write resolution: 1024"
    )


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin", ".CKPT"])
def test_a_pickle_is_refused_with_the_line_that_converts_it(suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    torch.save({"a": torch.zeros(1)}, path)
    line = f"python tools/lora.py convert-base {path} {tmp_path}/model.safetensors"
    with pytest.raises(PatinaError, match=line):
        find_base(str(path))


def test_a_file_that_lacks_something_is_refused_naming_it(world, tmp_path):
    weights = ldm.checkpoint(tiny.sdxl())
    lacking = {name: weight for name, weight in weights.items() if "middle_block.1.transformer_blocks.9" not in name}
    with pytest.raises(
        PatinaError, match=r"its unet is cut down .*tensors are missing, first mid_block.*transformer_blocks\.9"
    ):
        load(save(lacking, tmp_path / "small.safetensors"), world)
    lacking = {name: weight for name, weight in weights.items() if "embedders.1.model.ln_final" not in name}
    with pytest.raises(
        PatinaError, match=r"text_encoder_2 is cut down .*2 of its 517 tensors are missing, .*final_layer_norm"
    ):
        load(save(lacking, tmp_path / "small.safetensors"), world)
    lacking = {name: weight for name, weight in weights.items() if "embedders.1" not in name}
    with pytest.raises(PatinaError, match=r"its text_encoder_2 is cut down .*517 of its 517"):
        load(save(lacking, tmp_path / "small.safetensors"), world)
    with pytest.raises(
        PatinaError, match=r"its text_encoder is cut down .* has shape \[49408, 32\], not \[49408, 768\]"
    ):
        load(world / "sd15.safetensors", LAYOUTS)  # of other widths


def test_a_file_without_a_vae_needs_one(world, tmp_path):
    family, other = FAMILIES["sdxl"], tiny.sdxl(seed=1)
    path = save(ldm.checkpoint(tiny.sdxl(), vae=False), tmp_path / "novae.safetensors")
    base = find_base(str(path))
    assert "without a VAE" in base.says
    with pytest.raises(PatinaError, match=r"holds no VAE; .* vae: PATH"):
        load_pipeline(base, torch.float32, CPU, layouts=world)
    other.vae.save_pretrained(tmp_path / "vae")
    save(ldm.autoencoder(other.vae.state_dict()), tmp_path / "vae.safetensors")
    save(other.vae.state_dict(), tmp_path / "diffusers.safetensors")
    other.save_pretrained(tmp_path / "whole")
    save(ldm.checkpoint(other), tmp_path / "whole.safetensors")
    other.unet, other.text_encoder, other.text_encoder_2 = (
        getattr(tiny.sdxl(), n) for n in components(other, family) if n != "vae"
    )
    for place in ("vae", "vae.safetensors", "diffusers.safetensors", "whole", "whole.safetensors"):
        pipe = load_pipeline(base, torch.float16, CPU, vae=str(tmp_path / place), layouts=world)
        for key, weight in other.vae.state_dict().items():
            assert torch.equal(pipe.vae.state_dict()[key], weight), (place, key)
        assert pipe.vae.dtype == torch.float32
        assert pipe.vae.config.scaling_factor == 0.13025


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_vae_replaces_the_bases_own(kind, world, tmp_path):
    tiny.sd15(seed=1).vae.save_pretrained(tmp_path / "vae")
    place = world / ("sd15" if kind == "folder" else "sd15.safetensors")
    pipe = load(place, world, vae=str(tmp_path / "vae"))
    assert all(torch.equal(w, pipe.vae.state_dict()[k]) for k, w in tiny.sd15(seed=1).vae.state_dict().items())
    assert all(torch.equal(w, pipe.unet.state_dict()[k]) for k, w in tiny.sd15().unet.state_dict().items())


def test_what_is_no_vae_is_refused(world, tmp_path):
    base = find_base(str(world / "sd15"))
    torch.save({}, tmp_path / "vae.pt")
    (tmp_path / "empty").mkdir()
    save(ldm.checkpoint(tiny.sd15(), vae=False), tmp_path / "unet.safetensors")
    for place, said in (
        ("vae.pt", "vae: .*convert-base"),
        ("none.safetensors", "no such file"),
        ("unet.safetensors", "holds no autoencoder"),
        ("empty", "cannot be loaded"),
    ):
        with pytest.raises(PatinaError, match=said):
            load_pipeline(base, torch.float32, CPU, vae=str(tmp_path / place), layouts=world)
