"""Every way in which an exported LoRA can differ from the live one is found when the file is read back."""

from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from patina.errors import PatinaError
from patina.families import FAMILIES
from patina.lora import file, inject
from patina.lora.verify import verify

SD15 = FAMILIES["sd15"]
ALPHA = tiny.ALPHA
NAME = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
TEXT = "lora_te_text_model_encoder_layers_3_mlp_fc1"


@pytest.fixture(scope="module")
def live() -> dict[str, torch.nn.Module]:
    return tiny.adapted(SD15, tiny.sd15())


@pytest.fixture(scope="module")
def exported(live, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("lora") / "a.safetensors"
    file.write(path, inject.state(live), SD15, ALPHA, torch.float32, {})
    return path


def nan(tensors):
    tensors[f"{NAME}.lora_up.weight"][3, 1] = float("nan")


def transposed(tensors):
    tensors[f"{NAME}.lora_up.weight"] = tensors[f"{NAME}.lora_up.weight"].T.contiguous()


def transposed_in_memory(tensors):
    up = tensors[f"{NAME}.lora_up.weight"]
    tensors[f"{NAME}.lora_up.weight"] = up.T.reshape(up.shape).contiguous()


def wrong_shape(tensors):
    tensors[f"{TEXT}.lora_up.weight"] = tensors[f"{TEXT}.lora_up.weight"][:-1].contiguous()


def missing(tensors):
    for part in ("lora_up.weight", "lora_down.weight", "alpha"):
        del tensors[f"{TEXT}.{part}"]


def unknown(tensors):
    for part in ("lora_up.weight", "lora_down.weight", "alpha"):
        tensors[f"lora_te_encoder_layers_3_mlp_fc1.{part}"] = tensors.pop(f"{TEXT}.{part}")


def wrong_alpha(tensors):
    tensors[f"{TEXT}.alpha"] = torch.tensor(4.0)


def off_by_a_thousandth(tensors):
    tensors[f"{TEXT}.lora_down.weight"] *= 1.001


def of_two_types(tensors):
    tensors[f"{TEXT}.lora_down.weight"] = tensors[f"{TEXT}.lora_down.weight"].half()


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (nan, f"{NAME}.lora_up.weight holds NaN"),
        (transposed, rf"{NAME}.lora_up.weight has shape \[4, 32\], not \[32, 4\]"),
        (transposed_in_memory, f"{NAME}.lora_up.weight: its delta differs"),
        (wrong_shape, rf"{TEXT}.lora_up.weight has shape \[63, 4\], not \[64, 4\]"),
        (missing, f"{TEXT} is missing"),
        (unknown, "layer lora_te_encoder_layers_3_mlp_fc1 is unknown"),
        (wrong_alpha, f"{TEXT}.alpha is 4.0, not 2.0"),
        (off_by_a_thousandth, f"{TEXT}.lora_up.weight: its delta differs"),
        (of_two_types, f"{TEXT}.lora_down.weight is torch.float16"),
    ],
)
def test_verify_finds_what_is_wrong(harm, said, live, exported, tmp_path):
    verify(exported, live, SD15, ALPHA, torch.float32)
    tensors = load_file(exported)
    harm(tensors)
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(PatinaError, match=said):
        verify(tmp_path / "bad.safetensors", live, SD15, ALPHA, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_verify_allows_rounding_and_no_more(dtype, live, tmp_path):
    path = tmp_path / "a.safetensors"
    saved = inject.state(live)
    tinier = {key: weight * 1e-5 if key.endswith("B") else weight for key, weight in saved.items()}
    file.write(path, saved, SD15, ALPHA, dtype, {})
    verify(path, live, SD15, ALPHA, dtype)
    tensors = load_file(path)
    tensors[f"{NAME}.lora_up.weight"] *= 1.03
    save_file(tensors, path)
    with pytest.raises(PatinaError, match=NAME):
        verify(path, live, SD15, ALPHA, dtype)
    pipe = tiny.sd15()
    modules = tiny.adapted(SD15, pipe)
    inject.load_state(modules, tinier)  # 1e-6: in fp16 a few subnormal steps
    file.write(path, tinier, SD15, ALPHA, dtype, {})
    verify(path, modules, SD15, ALPHA, dtype)
