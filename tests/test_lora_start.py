"""What an adapter starts from: a file of another rank, or the layer's own weight; and keeping its change short."""

import pytest
import tiny
import torch
from torch import nn

from patina.errors import PatinaError
from patina.families import FAMILIES
from patina.lora import file, inject
from patina.lora.forms import form_of
from patina.lora.norms import length, limit
from patina.lora.pack import packed
from patina.lora.recipe import Recipe
from patina.lora.start import start_from
from patina.lora.svd import leading

SD15 = FAMILIES["sd15"]
ALPHA = 2.0
MID = "mid_block.attentions.0.transformer_blocks.0."


def adapted(rank: int, targets=("attn2.to_q", "proj_in", "conv1"), seed: int = 0) -> nn.Module:
    """The tiny UNet with a LoRA on a few layers, one of them a 3x3 convolution; it changes nothing yet."""
    unet = tiny.sd15().unet
    inject.adapt(unet, targets, rank, ALPHA, seed)
    return unet


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A UNet with a trained LoRA of rank 4, and its file."""
    unet = adapted(4)
    generator = torch.Generator().manual_seed(2)
    for adapter in inject.adapters(unet).values():
        nn.init.normal_(adapter.B, generator=generator)
    path = tmp_path_factory.mktemp("lora") / "first.safetensors"
    file.write(path, packed({"unet": unet}, ALPHA), SD15, ALPHA, torch.float32, {})
    return unet, path


@torch.no_grad()
def change(adapter: inject.Adapter) -> torch.Tensor:
    """scale * B A in float64."""
    return adapter.scale * (adapter.B.double().flatten(1) @ adapter.A.double().flatten(1))


@pytest.mark.parametrize("rank", [4, 7])
def test_a_file_of_no_higher_rank_is_taken_over_whole(rank, written):
    unet, path = written
    other = adapted(rank, seed=5)
    drawn = {where: adapter.A[4:].clone() for where, adapter in inject.adapters(other).items()}
    (line,) = start_from(path, {"unet": other})
    assert line == "first.safetensors: 54 of its 54 layers start this LoRA's 54"
    for where, adapter in inject.adapters(other).items():
        wanted = change(inject.adapters(unet)[where])
        torch.testing.assert_close(change(adapter), wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max())
        assert torch.equal(adapter.A[4:], drawn[where])  # the ranks that are left can still learn
        assert not adapter.B[:, 4:].any()


def test_a_file_of_a_higher_rank_is_cut_to_the_nearest_and_says_so(written):
    unet, path = written
    other = adapted(2)
    _, cut = start_from(path, {"unet": other})
    lost = whole = 0.0
    for where, adapter in inject.adapters(other).items():
        wanted = change(inject.adapters(unet)[where])
        values = torch.linalg.svdvals(wanted)
        missing = (change(adapter) - wanted).norm().item()
        assert missing == pytest.approx(values[2:].norm().item(), rel=1e-3)  # no matrix of rank 2 is nearer
        lost, whole = lost + missing**2, whole + wanted.square().sum().item()
    assert cut == f"its rank is higher: {(lost / whole) ** 0.5:.1%} of its change is left out"


def test_what_a_file_has_for_other_layers_is_named(written, tmp_path):
    other = adapted(4, targets=("attn2.to_q",))
    first, unused = start_from(written[1], {"unet": other})
    assert first == "first.safetensors: 16 of its 54 layers start this LoRA's 16"
    assert unused.startswith("not used: lora_unet_")
    assert unused.endswith(", ...")
    text = tiny.sd15().text_encoder
    inject.adapt(text, ("q_proj", "k_proj", "v_proj", "out_proj"), 2, 2, seed=0)
    with pytest.raises(PatinaError, match="holds none of the 48 layers that this run trains"):
        start_from(written[1], {"text_encoder": text})


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_start_from_the_weight_is_what_the_papers_say(init):
    unet = tiny.sd15().unet
    inject.adapt(unet, ("attn2.to_q",), 3, 6.0, 0, Recipe(init=init))
    for adapter in inject.adapters(unet).values():
        weight = adapter.base.double()
        assert adapter.start.keys() == {"lora_A", "lora_B"}
        if init == "olora":
            columns, rows = torch.linalg.qr(weight)
            torch.testing.assert_close(change(adapter), 2 * columns[:, :3] @ rows[:3], rtol=1e-4, atol=1e-5)
        else:  # random weights have no main directions, so that the last of three is found but nearly: judge by size
            best = torch.linalg.svdvals(weight)[3:].norm().item()
            assert (weight - change(adapter)).norm().item() == pytest.approx(best, rel=1e-3)
            torch.testing.assert_close(adapter.A.norm(dim=1), adapter.B.norm(dim=0))


def test_the_leading_vectors_are_those_of_the_whole_decomposition():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(40, 60, generator=generator, dtype=torch.float64) * 0.7 ** torch.arange(60)
    values = torch.linalg.svdvals(matrix)
    found = leading(matrix, 5, generator)
    assert (found.left.shape, found.values.shape, found.right.shape) == ((40, 5), (5,), (5, 60))
    torch.testing.assert_close(found.values, values[:5])
    rest = (matrix - (found.left * found.values) @ found.right).norm()
    assert rest == pytest.approx(values[5:].norm().item(), rel=1e-6)
    assert len(leading(matrix, 100, generator).values) == 40


@pytest.mark.parametrize("algo", ["lora", "dora", "loha", "lokr"])
def test_a_change_is_scaled_back_to_the_limit_and_its_direction_kept(algo):
    unet = tiny.sd15().unet
    inject.adapt(unet, ("attn2.to_q", "conv1"), 3, ALPHA, 0, Recipe(algo))
    generator = torch.Generator().manual_seed(4)
    for place, adapter in enumerate(inject.adapters(unet).values()):
        for weight in adapter.weights.values():
            weight.data += (0.02 if place % 2 else 1.0) * torch.randn(weight.shape, generator=generator)
    before = {path: whole(adapter) for path, adapter in inject.adapters(unet).items()}
    limit([unet], 1.5)
    kept = 0
    for path, adapter in inject.adapters(unet).items():
        norm = before[path].norm().item()
        assert length(adapter).item() == pytest.approx(min(norm, 1.5), rel=1e-4)
        torch.testing.assert_close(whole(adapter), before[path] * min(1, 1.5 / norm), rtol=1e-3, atol=1e-4)
        kept += norm <= 1.5
    assert 0 < kept < len(before)


@torch.no_grad()
def whole(adapter: inject.Adapter) -> torch.Tensor:
    """What an adapter adds, DoRA's lengths left aside."""
    parts = {name: weight.double() for name, weight in adapter.weights.items() if name != "dora_scale"}
    return adapter.scale * form_of(parts).product(parts).reshape(adapter.base.shape)
