"""A fused UNet computes what diffusers' and peft's own does, learns the same, and is exported under the same names."""

# torch annotates gradients as perhaps absent, and blocks as any module: what is spoiled here is known to be there.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOptionalMemberAccess=false
# pyright: reportCallIssue=false, reportOptionalOperand=false, reportOperatorIssue=false, reportIndexIssue=false

import golden
import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor
from torch import nn

from patina.engine.fused import ops
from patina.engine.fused.blocks import Block, Norm, ResBlock, Spatial, fuse
from patina.engine.fused.linear import Projected, project
from patina.engine.memory import again
from patina.engine.precision import Precision
from patina.families import FAMILIES
from patina.family import narrow
from patina.lora import inject
from patina.lora.recipe import Carrier, Recipe
from tests import tiny

SAME = {"rtol": 1e-4, "atol": 1e-5}
"""fp32: the same sums in another order."""
CUDA = torch.device("cuda")
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]


def adapted(name: str, checkpointing: bool = False) -> nn.Module:
    """A tiny UNet of the family that carries LoRAs which change something, their gradients in place."""
    torch.manual_seed(0)
    family = FAMILIES[name]
    unet = getattr(tiny.PIPELINES[name](), family.denoiser)
    inject.adapt(unet, narrow(family, "full")[family.denoiser], 4, 4.0, 1)
    for weight in unet.parameters():
        if weight.requires_grad:
            nn.init.normal_(weight, std=0.2)
            weight.grad = torch.zeros_like(weight)
    if checkpointing:
        unet.enable_gradient_checkpointing(again(drops=False))
    return unet


def said(unet: nn.Module, count: int = 2, seed: int = 0) -> dict[str, object]:
    """What a UNet is told."""
    generator = torch.Generator().manual_seed(seed)
    config = unet.config
    told: dict[str, object] = {
        "sample": torch.randn(count, config.in_channels, 8, 16, generator=generator),
        "timestep": torch.tensor([10, 700])[:count],
        "encoder_hidden_states": torch.randn(count, 7, config.cross_attention_dim, generator=generator),
    }
    if config.addition_embed_type == "text_time":
        width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        pooled = torch.randn(count, width, generator=generator)
        told["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": torch.ones(count, 6)}
    return told


def learned(unet: nn.Module, *seeds: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The last output, and the gradients of all passes added up."""
    y = torch.empty(0)
    for seed in seeds:
        y = unet(**said(unet, seed=seed)).sample
        (y * torch.linspace(0.1, 1, y.numel()).view_as(y)).sum().backward()
    grads = {name: weight.grad for name, weight in unet.named_parameters() if weight.requires_grad}
    return y.detach(), {name: grad for name, grad in grads.items() if grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "again"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_fused_unet_computes_and_learns_the_same(name, checkpointing) -> None:
    y, grads = learned(adapted(name), 0, 1)
    ours = adapted(name, checkpointing)
    assert fuse(ours) > 5
    kinds = {type(module) for module in ours.modules()}
    assert {Block, ResBlock, Spatial, Norm} <= kinds
    found, gradients = learned(ours, 0, 1)
    torch.testing.assert_close(found, y, **SAME)
    assert gradients.keys() == grads.keys()
    for key, grad in grads.items():
        assert grad.norm() > 0, key
        assert (gradients[key] - grad).norm() < 1e-4 * grad.norm(), key


@pytest.mark.parametrize("name", FAMILIES)
def test_whole_steps_have_the_golden_losses(name) -> None:
    """The text encoders learn, too; batches are added up."""
    golden_numbers, found = golden.measure(name), golden.measure(name, fused=True)
    assert found["loss"] == pytest.approx(golden_numbers["loss"], rel=1e-5)
    assert found["grad_norm"] == pytest.approx(golden_numbers["grad_norm"], rel=1e-4)


def test_products_that_share_their_input_are_joined(monkeypatch) -> None:
    joined = []
    apply = Projected.apply
    monkeypatch.setattr(
        Projected, "apply", lambda x, scales, *parts: joined.append(len(scales)) or apply(x, scales, *parts)
    )
    unet = adapted("sd15")
    fuse(unet)
    learned(unet, 0)
    assert {1, 2, 3} == set(joined)  # q, k and v of one picture; k and v of the text; each of the others


def test_names_and_the_exported_lora_stay() -> None:
    plain, ours = adapted("sd15"), adapted("sd15")
    fuse(ours)
    assert inject.layers(ours).keys() == inject.layers(plain).keys()
    before, after = inject.state({"unet": plain}), inject.state({"unet": ours})
    assert before.keys() == after.keys()
    assert all(torch.equal(weight, after[key]) for key, weight in before.items())
    assert plain.state_dict().keys() == ours.state_dict().keys()


def test_it_draws_without_gradients_and_without_its_lora() -> None:
    plain, ours = adapted("sd15"), adapted("sd15")
    fuse(ours)
    with torch.no_grad():
        torch.testing.assert_close(ours(**said(ours)).sample, plain(**said(plain)).sample, **SAME)
        for unet in (plain, ours):
            for layer in unet.modules():
                if isinstance(layer, Carrier):
                    layer.enable_adapters(False)
        torch.testing.assert_close(ours(**said(ours)).sample, plain(**said(plain)).sample, **SAME)


def spoil_attention(block: nn.Module) -> None:
    block.attn1.set_processor(AttnProcessor())


def spoil_residual(block: nn.Module) -> None:
    block.attn2.residual_connection = True


def spoil_chunks(block: nn.Module) -> None:
    block.set_chunk_feed_forward(1)


def spoil_dropout(block: nn.Module) -> None:
    block.ff.net[1].p = 0.1


def spoil_attention_dropout(block: nn.Module) -> None:
    block.attn1.to_out[1].p = 0.1


def spoil_norm(block: nn.Module) -> None:
    block.norm2.weight.requires_grad_()


def spoil_query(block: nn.Module) -> None:
    block.attn1.norm_q = nn.LayerNorm(8)


SPOILERS = [spoil_attention, spoil_residual, spoil_chunks, spoil_dropout, spoil_attention_dropout, spoil_norm]
SPOILERS += [spoil_query]
RESNETS = [("up", True), ("skip_time_act", True), ("time_embedding_norm", "scale_shift"), ("nonlinearity", nn.GELU())]
PICTURES = [(2, 320, 8, 8), (1, 640, 5, 7), (3, 96, 16, 3), (2, 2560, 8, 8), (1, 1920, 32, 32)]
"""Shapes that are and are not multiples of the kernels' tiles."""


@pytest.mark.parametrize("spoil", SPOILERS)
def test_a_block_of_another_sort_stays_diffusers_own(spoil) -> None:
    unet = adapted("sd15")
    (first, *_) = [module for module in unet.modules() if type(module).__name__ == "BasicTransformerBlock"]
    spoil(first)
    fuse(unet)
    assert first in list(unet.modules())
    kinds = [type(module).__name__ for module in unet.modules()]
    assert kinds.count("BasicTransformerBlock") == 1


@pytest.mark.parametrize(("key", "value"), RESNETS)
def test_a_resnet_of_another_sort_stays_diffusers_own(key, value) -> None:
    unet = adapted("sd15")
    (first, *_) = [module for module in unet.modules() if type(module).__name__ == "ResnetBlock2D"]
    setattr(first, key, value)
    fuse(unet)
    assert [type(module).__name__ for module in unet.modules()].count("ResnetBlock2D") == 1


@pytest.mark.parametrize("change", [{"stride": (2, 2)}, {"padding": (1, 1)}, {"dilation": (2, 2)}])
def test_a_convolution_that_is_no_product_is_left_alone(change) -> None:
    conv = nn.Conv2d(4, 4, 1)
    for key, value in change.items():
        setattr(conv, key, value)
    x = torch.randn(2, 9, 4)
    (y,) = project([conv], x)
    torch.testing.assert_close(y, conv(x.transpose(1, 2).unsqueeze(-1)).squeeze(-1).transpose(1, 2))


def test_hooks_on_a_layer_are_heard() -> None:
    layer = nn.Linear(4, 4)
    layer.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 0,))
    (y,) = project([layer], torch.randn(2, 3, 4))
    torch.testing.assert_close(y, layer.bias.expand(2, 3, 4))


@pytest.mark.parametrize("how", [{"dropout": 0.4}, {"rank_dropout": 0.4}, {"module_dropout": 0.4}])
def test_every_dropout_is_left_to_peft(how, monkeypatch) -> None:
    monkeypatch.setattr(Projected, "apply", lambda *_: pytest.fail("a layer that drops was joined with others"))
    family = FAMILIES["sd15"]
    unet = getattr(tiny.PIPELINES["sd15"](), family.denoiser)
    inject.adapt(unet, narrow(family, "full")[family.denoiser], 4, 4.0, 1, Recipe(**how))
    for weight in unet.parameters():
        if weight.requires_grad:
            weight.grad = torch.zeros_like(weight)
    fuse(unet)
    unet(**said(unet)).sample.sum().backward()


def test_checkpointing_may_be_switched_on_once_it_is_fused() -> None:
    before, grads = learned(adapted("sd15"), 0)
    unet = adapted("sd15")
    fuse(unet)
    unet.enable_gradient_checkpointing(again(drops=False))
    found, gradients = learned(unet, 0)
    assert any(type(module) is Spatial and module.gradient_checkpointing for module in unet.modules())
    torch.testing.assert_close(found, before, **SAME)
    assert all((gradients[key] - grad).norm() < 1e-4 * grad.norm() for key, grad in grads.items())


def drawn(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(CUDA, dtype).requires_grad_()


def near(ours: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype) -> None:
    """To a few times the spacing of the numbers."""
    assert (ours.float() - exact.float()).norm() < 4 * torch.finfo(dtype).eps * exact.float().norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
class TestKernels:
    pytestmark = gpu

    @pytest.mark.parametrize("shifted", [False, True])
    @pytest.mark.parametrize("silu", [False, True])
    @pytest.mark.parametrize("shape", PICTURES)
    def test_group_norm(self, dtype, shape, silu, shifted) -> None:
        x, shift = drawn(*shape, dtype=dtype), drawn(*shape[:2], dtype=dtype)
        norm = nn.GroupNorm(32, shape[1], device=CUDA, dtype=dtype).requires_grad_(False)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        y, kept = ops.group_norm(x, shift if shifted else None, norm.weight, norm.bias, 32, norm.eps, silu)
        beside = 0 if shifted else 0.5 * kept
        (y * drawn(*shape, dtype=dtype).detach() + beside).sum().backward()
        exact_x, exact_shift = (part.detach().float().requires_grad_() for part in (x, shift))
        whole = exact_x + exact_shift[:, :, None, None] if shifted else exact_x
        exact = F.group_norm(whole, 32, norm.weight.float(), norm.bias.float(), norm.eps)
        exact = F.silu(exact) if silu else exact
        beside = 0 if shifted else 0.5 * exact_x
        (exact * drawn(*shape, dtype=dtype).detach().float() + beside).sum().backward()
        near(y, exact, dtype)
        near(x.grad, exact_x.grad, dtype)
        if shifted:
            error = (shift.grad.float() - exact_shift.grad).abs().max()
            assert error < 1e-2 * exact_x.grad.abs().sum((2, 3)).max()  # sums of both signs all but cancel

    @pytest.mark.parametrize("added", [False, True])
    @pytest.mark.parametrize("shape", [(2, 17, 320), (1, 5, 640), (4, 33, 1280), (3, 7, 96)])
    def test_add_norm(self, dtype, shape, added) -> None:
        a, b = drawn(*shape, dtype=dtype), drawn(*shape[::-1], dtype=dtype).detach().reshape(shape).requires_grad_()
        norm = nn.LayerNorm(shape[-1], device=CUDA, dtype=dtype).requires_grad_(False)
        nn.init.normal_(norm.weight)
        y, whole = ops.add_norm(norm, a, b if added else None)
        (y * drawn(*shape, dtype=dtype).detach() + 0.5 * whole).sum().backward()
        exact_a, exact_b = (part.detach().float().requires_grad_() for part in (a, b))
        total = exact_a + exact_b if added else exact_a
        exact = F.layer_norm(total, shape[-1:], norm.weight.float(), norm.bias.float(), norm.eps)
        (exact * drawn(*shape, dtype=dtype).detach().float() + 0.5 * total).sum().backward()
        near(y, exact, dtype)
        near(whole, total, dtype)
        near(a.grad, exact_a.grad, dtype)
        if added:
            near(b.grad, exact_b.grad, dtype)

    @pytest.mark.parametrize("shape", [(2, 17, 2560), (1, 5, 1000), (3, 7, 64)])
    def test_gated(self, dtype, shape) -> None:
        x = drawn(*shape, dtype=dtype)
        slope = drawn(*shape[:2], shape[2] // 2, dtype=dtype).detach()
        (ops.gated(x) * slope).sum().backward()
        exact_x = x.detach().float().requires_grad_()
        value, gate = exact_x.chunk(2, dim=-1)
        exact = value * F.gelu(gate)
        (exact * slope.float()).sum().backward()
        near(ops.gated(x), exact, dtype)
        near(x.grad, exact_x.grad, dtype)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "again"])
@pytest.mark.parametrize("name", FAMILIES)
class TestSteps:
    pytestmark = gpu

    def test_captured_and_fused_it_is_near_to_fp32(self, name, checkpointing) -> None:
        exact = golden.measure(name, steps=2)
        half = Precision(CUDA, torch.float16)
        how = {"captured": True, "native": True, "checkpointing": checkpointing, "fused": True}
        found = golden.measure(name, half, 6, **how)
        assert found["loss"][:2] == pytest.approx(exact["loss"], rel=2e-3)
        assert found["grad_norm"][:2] == pytest.approx(exact["grad_norm"], rel=5e-2)
