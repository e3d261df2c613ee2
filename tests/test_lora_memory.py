"""Baking and extracting need the memory of a layer or two, however large the checkpoint is.

What is measured is the peak of a process's resident memory (VmHWM) less what it was once torch was imported; pages of
mapped files would count. `getrusage` will not do: a child's `ru_maxrss` begins at what its parent had.
"""

import json
import math
import os
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import ldm
import pytest
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from patina.bases.single import LAYOUTS

MIB = 2**20
WIDTHS = {"F16": 2, "F32": 4}
MEASURED = """
import sys
import patina.lora.bake, patina.lora.extract, patina.lora.sound
from toolbox import load_tool

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

lora, before = load_tool("lora").main, peak()
assert lora(sys.argv[1:]) == 0
print(peak() - before)
"""

Shapes = Mapping[str, tuple[int, ...]]


class Case(NamedTuple):
    """A checkpoint of zeros, which is sparse on the disk, and where another and a LoRA differ from it."""

    dtype: str
    shapes: Shapes
    changed: dict[str, tuple[str, int]]
    """LoRA's name of a layer -> its weight's key, and how many rows of that are the layer's."""


def small() -> Case:
    """384 MiB in 24 layers of 16 each."""
    names = [f"model.diffusion_model.input_blocks.{n}.1.proj_in.weight" for n in range(23)]
    names.append("cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight")
    return Case(
        "F32", dict.fromkeys(names, (2048, 2048)), {"lora_unet_down_blocks_0_attentions_0_proj_in": (names[1], 2048)}
    )


def full_size() -> Case:
    """Stable Diffusion XL in fp16, 6.9 GB; its largest layer is a convolution of 56 MiB."""
    layout = LAYOUTS / "sdxl"
    with init_empty_weights():
        text_2 = CLIPTextModelWithProjection(CLIPTextConfig.from_pretrained(layout / "text_encoder_2"))
        pipe = SimpleNamespace(
            unet=UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(layout / "unet")),
            vae=AutoencoderKL.from_config(AutoencoderKL.load_config(layout / "vae")),
            text_encoder=CLIPTextModel(CLIPTextConfig.from_pretrained(layout / "text_encoder")),
            components={"text_encoder_2": text_2},
        )
        shapes = {name: tuple(weight.shape) for name, weight in ldm.checkpoint(pipe).items()}
    unet, text = "model.diffusion_model.", "conditioner.embedders.1.model.transformer.resblocks."
    changed = {
        "lora_unet_output_blocks_0_0_in_layers_2": (f"{unet}output_blocks.0.0.in_layers.2.weight", 1280),
        "lora_unet_middle_block_1_transformer_blocks_3_ff_net_0_proj": (
            f"{unet}middle_block.1.transformer_blocks.3.ff.net.0.proj.weight",
            10240,
        ),
        "lora_te2_text_model_encoder_layers_7_self_attn_q_proj": (f"{text}7.attn.in_proj_weight", 1280),
    }
    return Case("F16", shapes, changed)


def sparse(path: Path, case: Case, given: Mapping[str, torch.Tensor]) -> None:
    """Write a checkpoint of zeros but for some tensors."""
    entries, at = {}, 0
    for name, shape in case.shapes.items():
        end = at + math.prod(shape) * WIDTHS[case.dtype]
        entries[name] = {"dtype": case.dtype, "shape": shape, "data_offsets": (at, end)}
        at = end
    text = json.dumps(entries).encode()
    start = 8 + len(text)
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        out.truncate(start + at)
        for name, tensor in given.items():
            out.seek(start + entries[name]["data_offsets"][0])
            out.write(tensor.numpy().tobytes())


def files(case: Case, folder: Path) -> None:
    """base, tuned and a LoRA of rank 4 for the layers in which the two differ."""
    dtype = {"F16": torch.float16, "F32": torch.float32}[case.dtype]
    tuned, tensors = {}, {}
    for name, (key, rows) in case.changed.items():
        shape = case.shapes[key]
        tuned[key] = torch.full(shape, 0.01, dtype=dtype)
        tensors[f"{name}.lora_down.weight"] = torch.ones(4, *shape[1:], dtype=dtype)
        tensors[f"{name}.lora_up.weight"] = torch.ones(rows, 4, *(1 for _ in shape[2:]), dtype=dtype)
    sparse(folder / "base.safetensors", case, {})
    sparse(folder / "tuned.safetensors", case, tuned)
    save_file(tensors, folder / "lora.safetensors")


def grown(folder: Path, *command: str) -> float:
    """MiB by which a command's process grows."""
    line = [sys.executable, "-c", MEASURED, *command]
    paths = {"PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[1]}"}
    done = subprocess.run(line, cwd=folder, env=os.environ | paths, capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1]) / 1024


BAKE = ("bake", "base.safetensors", "lora.safetensors", "--output", "out.safetensors")
EXTRACT = ("extract", "base.safetensors", "tuned.safetensors", "out.safetensors", "--rank", "4")


@pytest.mark.slow
def test_a_checkpoint_is_streamed(tmp_path):
    """Of 16 MiB a layer, float64 makes 32; baking holds three such, and finding singular values some more."""
    files(small(), tmp_path)
    assert grown(tmp_path, *BAKE) < 160
    assert (tmp_path / "out.safetensors").stat().st_size > 384 * MIB
    (tmp_path / "out.safetensors").unlink()
    assert grown(tmp_path, *EXTRACT) < 260


@pytest.mark.huge
def test_a_full_size_sdxl_is_streamed(tmp_path):
    """Its largest layer is 56 MiB in fp16 and 225 in float64; the checkpoint is 6.6 GiB, and two are compared."""
    files(full_size(), tmp_path)
    try:
        baked = grown(tmp_path, *BAKE)
        assert (tmp_path / "out.safetensors").stat().st_size > 6_900_000_000
        (tmp_path / "out.safetensors").unlink()
        extracted = grown(tmp_path, *EXTRACT)
    finally:
        for path in tmp_path.iterdir():
            path.unlink()
    assert baked < 700, baked
    assert extracted < 900, extracted
