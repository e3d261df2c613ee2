"""Whole runs on bases of every family, in every form that a base comes in."""

import json
import socket
from pathlib import Path

import ldm
import numpy as np
import pytest
import tiny
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from patina import configfile
from patina.bases.single import LAYOUTS
from patina.data.captions import write_table
from patina.errors import PatinaError
from patina.families import FAMILIES
from patina.lora.file import read
from patina.run import run

SMALL = """\
train_data_dir: pictures
metadata_path: pictures/metadata.csv
base_model: base
output_dir: out/small
resolution: 64
lora_rank: 4
mixed_precision: fp32
max_steps: 2
save_steps: 0
"""


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """Two pictures and a config; the working directory."""
    (tmp_path / "pictures").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3), np.uint8)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / "pictures" / f"{number}.png")
    write_table(tmp_path / "pictures" / "metadata.csv", {"0.png": "a red house", "1.png": "a cat"})
    (tmp_path / "run.yaml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def small(*overrides: str):
    return configfile.load(Path("run.yaml"), overrides)


@pytest.mark.parametrize(
    ("name", "layers", "version", "webui"),
    [("sd15", 264, "sd_v1", "SD1"), ("sd2", 330, "sd_v2_v", "SD2"), ("sdxl", 722, "sdxl_base_v1-0", "SDXL")],
)
def test_every_family_trains_previews_and_is_read_by_diffusers(place, capsys, name, layers, version, webui) -> None:
    tiny.PIPELINES[name]().save_pretrained("base")
    path = run(small("preview.every=2", "preview.steps=1"))
    written = read(path)
    assert len(written.layers) == layers
    assert written.metadata["ss_base_model_version"] == version
    assert json.loads(path.with_suffix(".json").read_text())["sd version"] == webui
    assert path.with_suffix(".png").is_file()
    assert f"base is {name}, a diffusers folder, predicts" in capsys.readouterr().out
    fresh = tiny.PIPELINES[name]()
    plain = tiny.outputs(FAMILIES[name], fresh)
    fresh.load_lora_weights(str(path.parent), weight_name=path.name)
    assert not torch.equal(tiny.outputs(FAMILIES[name], fresh)[1], plain[1])


def test_sdxl_trains_its_text_encoders_where_the_config_says_so(place) -> None:
    tiny.sdxl().save_pretrained("base")
    with pytest.raises(PatinaError, match=r"text encoders of sdxl are trained only where .* train_text_encoder: true"):
        run(small("text_encoder_lr=1e-5"))
    written = read(run(small("train_text_encoder=true", "text_encoder_lr=1e-5")))
    assert len(written.layers) == 986
    assert sum(bool(layer.up.any()) for layer in written.layers.values()) > 900


def test_a_base_that_is_no_base_stops_the_run_before_anything_is_written(place) -> None:
    tiny.sd2().save_pretrained("base")
    (place / "base.safetensors").write_bytes(b"")
    for overrides, said in (
        (["family=sdxl"], "family: sdxl, but base is sd2.*write family: sd2"),
        (["base_model=base.safetensors"], "not a whole"),
        (["base_model=owner.ckpt"], "convert-base"),
    ):
        with pytest.raises(PatinaError, match=said):
            run(small(*overrides))
    assert [path.name for path in Path("out").rglob("*") if path.is_file()] == [".lock"]


@pytest.mark.slow
def test_a_full_size_single_file_trains_without_a_network(place, monkeypatch) -> None:
    """Random weights in the shapes of Stable Diffusion 1.5, 2 GB in fp16, by the path that a user takes."""

    def refused(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refused)
    path = place / "model.safetensors"
    save_file(full_size_sd15(), path)
    assert path.stat().st_size > 2_000_000_000
    try:
        written = read(run(small("base_model=model.safetensors", "lora_alpha=4", "text_encoder_lr=1e-4")))
    finally:
        path.unlink()
    assert len(written.layers) == 264
    assert written.layers["lora_unet_mid_block_attentions_0_proj_in"].down.shape == (4, 1280, 1, 1)
    lines = Path("out/small/metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert all(np.isfinite(json.loads(line)["loss"]) for line in lines)


def full_size_sd15() -> dict[str, torch.Tensor]:
    """A checkpoint whose numbers are small enough for the model to stay finite; norms are ones."""
    layout = LAYOUTS / "sd15"
    with init_empty_weights():
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(layout / "unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(layout / "vae"))
        text = CLIPTextModel(CLIPTextConfig.from_pretrained(layout / "text_encoder"))
    names = {f"model.diffusion_model.{name}": weight for name, weight in ldm.unet(unet.state_dict()).items()}
    names |= {f"first_stage_model.{name}": weight for name, weight in ldm.autoencoder(vae.state_dict()).items()}
    names |= {f"cond_stage_model.transformer.{name}": weight for name, weight in ldm.clip(text.state_dict()).items()}
    generator = torch.Generator().manual_seed(0)
    return {name: drawn(weight, generator) for name, weight in names.items()}


def drawn(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if not weight.is_meta:
        return weight
    if weight.ndim == 1:
        return torch.ones(weight.shape, dtype=torch.float16)
    return (torch.randn(weight.shape, generator=generator) / weight[0].numel() ** 0.5).half()
