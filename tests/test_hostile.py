"""Models and names that mean harm: no pickle is opened, and nothing that is shown steers the terminal."""

import shutil
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_text import llama, save
from toolbox import load_tool

from patina.bases.find import find_base
from patina.bases.load import load_pipeline, load_vae
from patina.errors import PatinaError
from patina.text.load import load_model
from patina.watch.console import say

CPU = torch.device("cpu")
NAME = "red\x1b]0;owned\x07\x1b[2J.png"
"""Sets the title of the window and clears the screen where it is obeyed."""


def pickled(weights: Path, name: str) -> None:
    """Put the same weights as a pickle in their place, which the library would read."""
    torch.save(load_file(weights), weights.with_name(name))
    weights.unlink()


@pytest.fixture
def base(tmp_path) -> Path:
    folder = tmp_path / "base"
    tiny.save_sd15(folder)
    return folder


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_base_with_pickled_weights_is_not_opened(base, part) -> None:
    (weights,) = (base / part).glob("*.safetensors")
    pickled(weights, "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin")
    with pytest.raises(PatinaError, match=r"base_model: .* cannot be loaded"):
        load_pipeline(find_base(str(base)), torch.float32, CPU)


def test_an_autoencoder_with_pickled_weights_is_not_opened(base) -> None:
    shutil.copytree(base / "vae", base / "other")
    pickled(base / "other" / "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
    with pytest.raises(PatinaError, match=r"vae: .* cannot be loaded"):
        load_vae(str(base / "other"), base)


def test_a_language_model_with_pickled_weights_is_not_opened(tmp_path) -> None:
    save(tmp_path / "lm", llama())
    pickled(tmp_path / "lm" / "model.safetensors", "pytorch_model.bin")
    with pytest.raises(PatinaError, match=r"base_model: .* cannot be loaded"):
        load_model(str(tmp_path / "lm"), torch.float32, CPU)


def test_a_pickled_adapter_is_not_opened(tmp_path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    torch.save({}, tmp_path / "adapter_model.bin")
    with pytest.raises(PatinaError, match=r"holds no adapter_model\.safetensors"):
        load_tool("chat").main(["--base", "nowhere", "--lora", str(tmp_path)])


def test_what_a_run_says_does_not_steer_the_terminal(capsys) -> None:
    say(f"most off {NAME}")
    assert capsys.readouterr().out == "most off red\\x1b]0;owned\\x07\\x1b[2J.png\n"


def test_what_the_labeller_says_does_not_steer_the_terminal(tmp_path, capsys) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / NAME)
    (tmp_path / "b\x1b[31m.png").write_bytes(b"torn")
    arguments = ["--input", str(tmp_path), "--output", str(tmp_path / "out.csv"), "--backend", "offline", "--dry-run"]
    load_tool("auto_label").main(arguments)
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    assert "red" in said.out
    assert "\\x1b[31m.png" in said.err
