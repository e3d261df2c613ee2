"""A frozen layer in fp8: its product, its gradient, and what the units for it make of them."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patina.bases import float8
from patina.bases.float8 import Float8Linear

CUDA = torch.device("cuda")
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]
ROUNDING = 2**-4 / 3**0.5
"""Relative, of a product with one side in e4m3: each number is off by up to a sixteenth of itself, evenly spread."""


def layer(width: int = 128, out: int = 64) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(width, out)


def apart(one: Tensor, other: Tensor) -> float:
    return ((one.float() - other.float()).norm() / other.float().norm()).item()


def test_forward_and_gradient_are_those_of_the_weight_that_its_bits_spell() -> None:
    plain = layer()
    kept = Float8Linear(plain)
    spelt = float8.whole(kept.weight, kept.scale, torch.float32)
    assert 0 < apart(spelt, plain.weight) < ROUNDING
    assert ((spelt - plain.weight).abs() <= 2**-4 * plain.weight.abs() + kept.scale * 2**-10).all()  # half a subnormal
    x, slope = torch.randn(2, 5, 128, requires_grad=True), torch.randn(2, 5, 64)
    torch.testing.assert_close(kept(x), F.linear(x, spelt, plain.bias))
    (found,) = torch.autograd.grad(kept(x), x, slope)
    torch.testing.assert_close(found, slope @ spelt)


def test_under_autocast_it_computes_as_a_plain_layer_does() -> None:
    x = torch.randn(3, 128, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = Float8Linear(layer())(x)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32


def test_rows_of_nothing_and_of_what_is_not_finite_stay_so() -> None:
    rows = torch.tensor([[0.0, 0.0], [1.0, torch.inf], [torch.nan, 1.0], [1e-30, -1e-30]])
    told = float8.rounded(rows)
    found = float8.whole(*told, torch.float32)
    assert torch.equal(found[0], rows[0])
    assert not found[1:3].isfinite().all(1).any()
    assert found[3].abs().max() < 1e-12


class TestOnTheGPU:
    pytestmark = gpu

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
    def test_the_units_make_nearly_what_the_whole_weight_does(self, dtype) -> None:
        if torch.cuda.get_device_capability() < float8.ADA:
            pytest.skip("has no units for fp8")
        plain = layer().to(CUDA, dtype)
        kept = Float8Linear(plain)
        x = torch.randn(7, 11, 128, device=CUDA, dtype=dtype)
        spelt = float8.whole(kept.weight, kept.scale, dtype)
        assert 0 < apart(kept(x), F.linear(x, spelt, plain.bias)) < ROUNDING
        odd = Float8Linear(layer(out=40).to(CUDA, dtype))
        spelt = float8.whole(odd.weight, odd.scale, dtype)
        torch.testing.assert_close(odd(x), F.linear(x, spelt, odd.bias))

    def test_a_recorded_layer_plays_back_what_it_computes(self) -> None:
        kept = Float8Linear(layer().to(CUDA, torch.bfloat16))
        x = torch.randn(32, 128, device=CUDA, dtype=torch.bfloat16, requires_grad=True)

        def work() -> tuple[Tensor, Tensor]:
            y = kept(x)
            return y, torch.autograd.grad(y, x, torch.ones_like(y))[0]

        with torch.cuda.stream(torch.cuda.Stream()):
            work()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            played = work()
        with torch.no_grad():
            x.copy_(torch.randn_like(x) * 3)
        graph.replay()
        for one, other in zip(played, work(), strict=True):
            assert torch.equal(one, other)
