"""Joined and resized LoRAs are the plain sums, or the best approximations of their rank, at the error that is told."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_lora_tool import deltas, lora

from patina.errors import PatinaError
from patina.lora import file, foreign
from patina.lora.blocks import WIDE
from patina.lora.combine import combine, kernel
from patina.lora.delta import Thin, delta
from patina.lora.names import Place
from patina.lora.svd import Keep, truncated

QUERY = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
CONV = "lora_unet_mid_block_resnets_0_conv1"
PROJ = "lora_unet_mid_block_attentions_0_proj_in"
TEXT = "lora_te_text_model_encoder_layers_3_mlp_fc1"


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain(names: dict[str, tuple[int, int, int]], rank: int, alpha: float, seed: int) -> dict[str, torch.Tensor]:
    """name -> (out, in, kernel), 0 for a linear layer."""
    tensors = {}
    for place, (name, (rows, columns, size)) in enumerate(names.items()):
        ones, kernel = ((1, 1), (size, size)) if size else ((), ())
        tensors[f"{name}.lora_up.weight"] = draw(rows, rank, *ones, seed=seed + place)
        tensors[f"{name}.lora_down.weight"] = draw(rank, columns, *kernel, seed=seed + place + 50)
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return tensors


@pytest.fixture
def pair(tmp_path) -> tuple[Path, Path]:
    """Two LoRAs of other ranks and alphas that share two layers of three each."""
    one = plain({QUERY: (8, 8, 0), CONV: (8, 8, 3), PROJ: (8, 8, 1)}, rank=2, alpha=1.0, seed=1)
    two = plain({QUERY: (8, 8, 0), CONV: (8, 8, 3), TEXT: (12, 8, 0)}, rank=3, alpha=6.0, seed=100)
    save_file(
        one, tmp_path / "one.safetensors", {"ss_base_model_version": "sd_v1", "modelspec.trigger_phrase": "mystyle"}
    )
    save_file(two, tmp_path / "two.safetensors")
    return tmp_path / "one.safetensors", tmp_path / "two.safetensors"


def test_joined_exactly_it_is_the_weighted_sum(pair, tmp_path, capsys):
    one, two = pair
    target = tmp_path / "sum.safetensors"
    assert lora(["merge", f"{one}:0.5", f"{two}:-2", "--output", str(target), "--dtype", "fp32"]) == 0
    assert "2 LoRAs, ranks 2 to 5, exact" in capsys.readouterr().out
    found = deltas(target)
    assert len(found) == 4
    for place, total in found.items():
        expected = sum(w * all_[place] for all_, w in ((deltas(one), 0.5), (deltas(two), -2.0)) if place in all_)
        torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-5)
    layers = file.read(target).layers
    assert {layer.alpha for layer in layers.values()} == {5.0}  # one alpha for all
    assert layers[CONV].down.shape == (5, 8, 3, 3)
    assert layers[PROJ].up.shape == (8, 2, 1, 1)
    metadata = file.read(target).metadata
    assert metadata["modelspec.merged_from"] == "one at 0.5, two at -2"
    assert metadata["ss_output_name"] == "sum"
    assert metadata["ss_network_dim"] == "5"
    assert metadata["ss_v2"] == "False"
    assert metadata["modelspec.trigger_phrase"] == "mystyle"


def test_the_order_of_files_does_not_matter(pair, tmp_path):
    one, two = pair
    lora(["merge", str(one), str(two), "--output", str(tmp_path / "a.safetensors"), "--dtype", "fp32"])
    lora(["merge", str(two), str(one), "--output", str(tmp_path / "b.safetensors"), "--dtype", "fp32"])
    first, second = deltas(tmp_path / "a.safetensors"), deltas(tmp_path / "b.safetensors")
    assert all(torch.allclose(first[place], second[place], rtol=1e-6, atol=1e-5) for place in first)


def best(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] * s[:rank] @ v[:rank]


def test_reduced_it_is_the_best_of_its_rank(pair, tmp_path, capsys):
    one, two = pair
    lora(["merge", str(one), str(two), "--output", str(tmp_path / "c.safetensors"), "--rank", "2", "--dtype", "fp32"])
    told = float(capsys.readouterr().out.split(" % off")[0].split()[-1])
    lost = whole = 0.0
    for place, total in deltas(tmp_path / "c.safetensors").items():
        exact = sum(all_[place] for all_ in (deltas(one), deltas(two)) if place in all_)
        torch.testing.assert_close(total, best(exact, 2), rtol=1e-5, atol=1e-4)
        lost, whole = lost + (exact - total).square().sum().item(), whole + exact.square().sum().item()
    assert told == pytest.approx(100 * math.sqrt(lost / whole), rel=0.05)
    assert told > 5


@pytest.mark.parametrize("shape", [(20, 9), (9, 20)])
@pytest.mark.parametrize("keep", [Keep(rank=3), Keep(rank=50), Keep(energy=0.8), Keep(energy=1.0)])
def test_thin_factors_and_the_matrix_are_cut_alike(shape, keep):
    up, down = draw(shape[0], 6, seed=3).double(), draw(6, shape[1], seed=4).double()
    values = torch.linalg.svdvals(up @ down)
    thin, kept, whole = truncated(Thin(up, down), keep)
    full, kept_too, whole_too = truncated(up @ down, keep)
    torch.testing.assert_close(thin.up @ thin.down, full.up @ full.down, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.tensor([kept, whole]), torch.tensor([kept_too, whole_too]))
    assert whole == pytest.approx(values.square().sum().item())
    rank = len(thin.down)
    if keep.energy and keep.energy < 1:
        shares = values.square().cumsum(0) / values.square().sum()
        assert shares[rank - 1] >= keep.energy > shares[rank - 2]
    torch.testing.assert_close(thin.up @ thin.down, best(up @ down, rank), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(thin.up.norm(dim=0), thin.down.norm(dim=1))  # neither factor leaves fp16's range first


def test_a_layer_that_changes_nothing_stays_nothing():
    for total in (Thin(torch.zeros(5, 2).double(), torch.ones(2, 7).double()), torch.zeros(5, 7).double()):
        factors, kept, whole = truncated(total, Keep(rank=2))
        assert kept == whole == 0
        assert not (factors.up.float() @ factors.down.float()).any()


def test_resize_keeps_energy_and_says_what_it_costs(pair, tmp_path, capsys):
    target = tmp_path / "small.safetensors"
    assert lora(["resize", str(pair[1]), str(target), "--energy", "0.7", "--dtype", "fp32"]) == 0
    assert "% off (relative Frobenius norm)" in capsys.readouterr().out
    for place, exact in deltas(pair[1]).items():
        assert (exact - deltas(target)[place]).square().sum() <= 0.3 * exact.square().sum() * (1 + 1e-5)
    assert len({layer.alpha for layer in file.read(target).layers.values()}) == 1
    lora(["resize", str(pair[1]), str(target), "--rank", "3", "--dtype", "fp32", "--force"])
    assert "rank 3, exact" in capsys.readouterr().out


def test_other_algorithms_become_plain_loras(tmp_path):
    parts = {f"{CONV}.hada_w{n}_a": draw(8, 2, seed=n) for n in (1, 2)}
    parts |= {f"{CONV}.hada_w{n}_b": draw(2, 8 * 9, seed=n + 9) for n in (1, 2)}
    parts |= {f"{PROJ}.lokr_w1": draw(2, 2, seed=5), f"{PROJ}.lokr_w2": draw(4, 4, 1, 1, seed=6)}
    save_file(parts, tmp_path / "a.safetensors", {"ss_base_model_version": "sd_v1"})
    lora(["resize", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"), "--rank", "8", "--dtype", "fp32"])
    layers = file.read(tmp_path / "b.safetensors").layers  # it reads plain LoRA alone
    assert layers[CONV].down.shape == (4, 8, 3, 3)  # a LoHa of rank 2 has rank 4
    assert layers[PROJ].down.shape == (8, 8, 1, 1)
    for place, exact in deltas(tmp_path / "a.safetensors").items():
        torch.testing.assert_close(deltas(tmp_path / "b.safetensors")[place], exact, rtol=1e-4, atol=1e-4)


def test_kernels_by_name_where_the_file_does_not_tell():
    assert kernel(Place("unet", "up_blocks.0.upsamplers.0.conv"), "sdxl", []) == (3, 3)
    assert kernel(Place("unet", "mid_block.attentions.0.proj_out"), "sd15", []) == (1, 1)
    assert kernel(Place("unet", "mid_block.attentions.0.proj_out"), "sd2", []) == ()
    assert kernel(Place("unet", "down_blocks.1.resnets.0.conv_shortcut"), "sdxl", []) == (1, 1)
    assert kernel(Place("text_encoder", "encoder.layers.0.self_attn.out_proj"), "sd15", []) == ()
    for layout, found in foreign.LAYOUTS.items():
        wide = [path for path in foreign.layers(found)["unet"] if path.endswith(WIDE)]
        assert all(kernel(Place("unet", path), layout, []) == (3, 3) for path in wide)


def harmed(pair: tuple[Path, Path], tmp_path: Path, change) -> Path:
    tensors = load_file(pair[1])
    change(tensors)
    save_file(tensors, tmp_path / "bad.safetensors")
    return tmp_path / "bad.safetensors"


def wider(tensors):
    tensors[f"{QUERY}.lora_up.weight"] = torch.ones(9, 3)


def biased(tensors):
    for part in ("lora_up.weight", "lora_down.weight", "alpha"):
        del tensors[f"{QUERY}.{part}"]
    tensors |= {f"{QUERY}.diff": torch.ones(8, 8), f"{QUERY}.diff_b": torch.ones(8)}


def dora(tensors):
    tensors[f"{QUERY}.dora_scale"] = torch.ones(8, 1)


def loha(tensors):
    for part in ("lora_up.weight", "lora_down.weight", "alpha"):
        del tensors[f"{QUERY}.{part}"]
    tensors |= {f"{QUERY}.hada_w{n}_{side}": torch.ones(8, 8) for n in (1, 2) for side in "ab"}


@pytest.mark.parametrize(
    ("harm", "more", "said"),
    [
        (wider, [], r"attn1.to_q: of sizes \(8, 8\) and \(9, 8\)"),
        (biased, ["--rank", "2"], "changes its bias"),
        (loha, [], "loha cannot be joined exactly; write --rank 32"),
        (dora, ["--rank", "2"], "depends on its base; name it with --base"),
    ],
)
def test_what_cannot_be_joined_is_refused(pair, tmp_path, harm, more, said):
    bad = harmed(pair, tmp_path, harm)
    with pytest.raises(PatinaError, match=said):
        lora(["merge", str(pair[0]), str(bad), "--output", str(tmp_path / "out.safetensors"), *more])
    assert not (tmp_path / "out.safetensors").exists()


def test_loras_for_different_families_are_not_joined(pair, tmp_path):
    other = plain({"lora_unet_input_blocks_7_1_transformer_blocks_9_attn1_to_q": (8, 8, 0)}, 2, 1.0, seed=0)
    save_file(other, tmp_path / "xl.safetensors")
    with pytest.raises(PatinaError, match=r"different families \(sd15, sdxl\)"):
        lora(["merge", str(pair[0]), str(tmp_path / "xl.safetensors"), "--output", str(tmp_path / "out.safetensors")])


def test_one_lora_alone_is_itself(pair):
    read = foreign.read_any(pair[0])
    found = combine([(read, 1.0)], "sd15")
    assert found.error == 0
    for place, change in found.changes.items():
        torch.testing.assert_close(delta(change), delta(read.changes[place]), rtol=1e-6, atol=1e-6)
