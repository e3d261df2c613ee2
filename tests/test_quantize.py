"""A UNet whose linear layers are kept in 8 or 4 bits trains, resumes and exports as another does, in less memory."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from patina import configfile
from patina.bases.find import find_base
from patina.bases.load import load_pipeline
from patina.bases.quantize import quantize
from patina.errors import PatinaError
from patina.run import run
from tests import tiny
from tests.test_run import SMALL, pictures

CPU = torch.device("cpu")
ERRORS = {"8bit": 0.02, "4bit": 0.15, "fp8": 2**-4 / 3**0.5}
"""Of a layer's product, relative: 8 bits a row are off by up to 1/254 of its largest weight, and so are the inputs;
NormalFloat's 16 values by a tenth of a typical weight; e4m3's 3 bits of mantissa by up to a sixteenth of any weight,
evenly spread."""
SIZES = {"8bit": 1.1, "4bit": 0.6, "fp8": 1.1}
"""Bytes a weight, with the scales."""


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    pictures(tmp_path / "pictures")
    tiny.save_sd15(tmp_path / "base")
    (tmp_path / "run.yaml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def small(*overrides: str):
    return configfile.load(Path("run.yaml"), overrides)


@pytest.mark.parametrize("bits", ERRORS)
def test_a_layers_product_is_near_to_what_it_was(bits) -> None:
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(128, 256), nn.SiLU(), nn.Linear(256, 64))
    x = torch.randn(8, 128)
    before = whole(x)
    quantize(whole, bits, torch.float32)
    whole.to(CPU).requires_grad_(False)
    assert 0 < (whole(x) - before).norm() < ERRORS[bits] * before.norm()
    weights = [layer.weight for layer in whole if isinstance(layer, nn.Linear)]
    stored = sum(weight.data.numel() * weight.data.element_size() for weight in weights)
    assert stored < SIZES[bits] * (128 * 256 + 256 * 64)


def test_the_denoiser_alone_is_quantised(place) -> None:
    pipe = load_pipeline(find_base("base"), torch.float32, CPU, bits="4bit")
    kinds = {type(layer).__name__ for layer in pipe.unet.modules() if isinstance(layer, nn.Linear)}
    assert kinds == {"Linear4bit"}
    assert not [layer for layer in pipe.text_encoder.modules() if type(layer).__name__ == "Linear4bit"]


@pytest.mark.parametrize("bits", ERRORS)
def test_it_trains_resumes_and_exports(place, bits) -> None:
    words = (f"quantize={bits}", "preview.every=4", "preview.steps=1", "preview.prompts=[a cat]")
    whole = load_file(run(small(*words)))
    plain = load_file(run(small("output_dir=out/plain")))
    assert whole.keys() == plain.keys()
    near = [torch.cosine_similarity(whole[key].flatten(), plain[key].flatten(), dim=0) for key in whole if "up" in key]
    assert torch.stack(near).mean() > 0.5  # it learns what it learns unquantised; unrelated ones have 0
    assert any(not torch.equal(whole[key], plain[key]) for key in whole)
    again = run(small(*words, "output_dir=out/two", "resume=out/small/checkpoints/step-000002"))
    assert all(torch.equal(weight, whole[key]) for key, weight in load_file(again).items())


def test_another_number_of_bits_is_another_training(place) -> None:
    run(small("quantize=4bit", "max_steps=2"))
    with pytest.raises(PatinaError, match="quantize was 4bit and is 8bit"):
        run(small("quantize=8bit", "resume=auto"))
    saved = Path("out/small/checkpoints/step-000002/state.json")
    assert json.loads(saved.read_text())["settings"]["quantize"] == "4bit"


def test_what_reads_the_bases_weights_is_refused(place) -> None:
    with pytest.raises(PatinaError, match="dora measures the base's weights"):
        small("quantize=4bit", "network.algo=dora")
