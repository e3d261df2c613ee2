"""A language model's fused layers compute what transformers' and peft's own do, learn the same, and answer alike."""

# what torch and transformers hold is annotated as perhaps absent, or as any module: it is known to be there
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

from itertools import islice

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from transformers import MistralConfig, MistralForCausalLM, Qwen3Config, Qwen3ForCausalLM

from patina.bases.quantize import Quantize, keep_gradients, quantize
from patina.engine.capture import CapturedStep
from patina.engine.flat import flatten
from patina.engine.fused import ops
from patina.engine.fused.decoder import fuse_decoder, sees_apart
from patina.engine.fused.linear import project
from patina.engine.halves import Halves
from patina.engine.memory import again
from patina.engine.precision import Precision
from patina.engine.step import EagerStep
from patina.lora import inject
from patina.optim import make_optimizer
from patina.tasks.text import TextTask
from patina.text.checkpointing import recompute_layers
from patina.text.grid import laid_out, starts_of
from patina.text.targets import choose_targets
from tests.test_text_pack import stream
from tests.tiny_text import SHAPE, built, llama, qwen2

SAME = {"rtol": 1e-4, "atol": 1e-5}
"""fp32: the same sums in another order."""
MODELS = {
    "llama": llama,
    "mistral": lambda: built(MistralForCausalLM, MistralConfig, 0, {**SHAPE, "sliding_window": None}),
    "qwen2": qwen2,
    "qwen3": lambda: built(Qwen3ForCausalLM, Qwen3Config, 0, {**SHAPE, "head_dim": 8}),
}
CUDA = torch.device("cuda")
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]


def adapted(name: str, bits: Quantize = "none") -> nn.Module:
    """A tiny model that carries LoRAs which change something, their gradients in place."""
    model = MODELS[name]()
    quantize(model.model, bits, torch.float32)
    model.to("cpu")
    keep_gradients(model)
    inject.adapt(model, choose_targets(model, "full"), 4, 4.0, 1)
    torch.manual_seed(0)
    for weight in model.parameters():
        if weight.requires_grad:
            nn.init.normal_(weight, std=0.2)
            weight.grad = torch.zeros_like(weight)
    return model


def learned(model: nn.Module, packed: int | None) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of two batches, and the gradients of both added up."""
    task = TextTask(model)
    loss = sum(task(batch) for batch in islice(stream(packed).batches(0), 2))
    loss.backward()
    return loss.item(), {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("packed", [32, None], ids=["packed", "padded"])
@pytest.mark.parametrize("name", MODELS)
def test_a_fused_model_computes_and_learns_the_same(name, packed) -> None:
    loss, grads = learned(adapted(name), packed)
    ours = adapted(name)
    assert fuse_decoder(ours) == 2
    found, gradients = learned(ours, packed)
    assert found == pytest.approx(loss, rel=1e-5)
    assert gradients.keys() == grads.keys()
    for weight, grad in grads.items():
        assert grad.norm() > 0
        torch.testing.assert_close(gradients[weight], grad, **SAME)


@pytest.mark.parametrize("bits", ["none", "4bit", "fp8"])
def test_layers_that_are_recomputed_or_kept_in_bits_learn_the_same(bits) -> None:
    loss, grads = learned(adapted("qwen2", bits), 32)
    ours = adapted("qwen2", bits)
    recompute_layers(ours, again(drops=False))
    assert fuse_decoder(ours) == 2
    found, gradients = learned(ours, 32)
    assert found == pytest.approx(loss, rel=1e-5)
    for weight, grad in grads.items():
        torch.testing.assert_close(gradients[weight], grad, **SAME)


@pytest.mark.parametrize("bits", ["4bit", "fp8"])
def test_layers_in_bits_are_computed_together(bits) -> None:
    attn = adapted("llama", bits).model.layers[0].self_attn
    x = torch.randn(2, 3, 32)
    told = project([attn.q_proj, attn.k_proj], x)
    for layer, y in zip((attn.q_proj, attn.k_proj), told, strict=True):
        torch.testing.assert_close(y, layer(x), **SAME)
    assert type(told[0].grad_fn).__name__ == "ViewBackward0" or "Projected" in type(told[0].grad_fn).__name__


@pytest.mark.parametrize("name", MODELS)
def test_answers_are_the_same_token_by_token(name) -> None:
    model, ours = adapted(name).eval(), adapted(name).eval()
    fuse_decoder(ours)
    asked = torch.arange(40, 52)[None]
    how = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 256}
    assert torch.equal(ours.generate(asked, **how), model.generate(asked, **how))


def test_what_is_not_of_the_plain_sort_stays() -> None:
    other = llama(hidden_act="gelu")
    inject.adapt(other, ("q_proj",), 4, 4.0, 1)
    assert fuse_decoder(other) == 0
    assert fuse_decoder(llama()) == 0  # its norms learn
    eager = llama(attn_implementation="eager").requires_grad_(False)
    assert fuse_decoder(eager) == 0


@pytest.mark.parametrize("packed", [40, None], ids=["packed", "padded"])
def test_a_batch_that_is_filled_up_teaches_the_same(packed) -> None:
    """The layers look at no mask: what `starts` says is told them by one here, as a CPU has no other way."""
    model = llama()
    batch = next(one for one in stream(packed, batch_size=3).batches(0) if len(one["input_ids"]) == 3)
    grown = laid_out(batch)
    rows, width = grown["input_ids"].shape
    assert (rows, width, len(grown["targets"]), len(grown["starts"])) == (3, 64, 256, 16)
    row = torch.bucketize(torch.arange(rows * width), grown["starts"].unique(), right=True).view(rows, width)
    mask = (row[:, :, None] == row[:, None, :]).tril()[:, None]
    task = TextTask(model)
    told = {name: grown[name] for name in ("input_ids", "position_ids", "predicts", "targets")}
    plainly, found = task.said(batch), task.said(told | {"attention_mask": mask})
    assert found.loss.item() == pytest.approx(plainly.loss.item(), rel=1e-5)
    assert found.right == plainly.right
    assert torch.equal(grown["starts"], laid_out(grown)["starts"])  # what is filled up already stays as it is


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """How far two tensors are from each other, as part of the second's length."""
    return float((one.float() - other.float()).norm() / other.float().norm())


class TestOnAGpu:
    pytestmark = gpu

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
    def test_the_kernels_say_what_torch_says(self, dtype) -> None:
        torch.manual_seed(0)
        norm = MODELS["llama"]().model.norm.to(CUDA, dtype).requires_grad_(False)
        nn.init.normal_(norm.weight)
        a, b = (torch.randn(3, 5, 32, device=CUDA, dtype=dtype, requires_grad=True) for _ in range(2))
        heads = torch.randn(2, 5, 3, 16, device=CUDA, dtype=dtype, requires_grad=True)
        cos, sin = (torch.randn(2, 5, 16, device=CUDA, dtype=dtype) for _ in range(2))
        works = {
            "rms": lambda: torch.cat(ops.add_rms(norm, 1e-6, a, b)),
            "rms of one": lambda: ops.add_rms(norm, 1e-6, a, None)[0],
            "swish": lambda: ops.swish(a, b),
            "turned": lambda: ops.turned(heads, cos, sin),
        }
        for name, work in works.items():
            kernels = self.with_gradients(work, a, b, heads)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(ops, "on_kernels", lambda x: False)
                words = self.with_gradients(work, a, b, heads)
            for one, other in zip(kernels, words, strict=True):
                assert apart(one, other) < 4 * torch.finfo(dtype).eps, name  # torch rounds between its words, too

    @staticmethod
    def with_gradients(work, *inputs) -> list[torch.Tensor]:
        y = work()
        slope = torch.linspace(-1, 1, y.numel(), device=y.device, dtype=y.dtype).view_as(y)
        grads = torch.autograd.grad(y, inputs, slope, allow_unused=True)
        return [y.detach(), *(grad for grad in grads if grad is not None)]

    def test_packed_rows_see_themselves_alone_without_a_mask(self) -> None:
        model = MODELS["qwen2"]().to(CUDA, torch.bfloat16).requires_grad_(False)
        batch = next(stream(64).batches(0))
        ids, positions = (batch[name].to(CUDA) for name in ("input_ids", "position_ids"))
        starts = starts_of(positions.cpu()).to(CUDA)

        def hidden(**said: object) -> torch.Tensor:
            return model.model(input_ids=ids, position_ids=positions, use_cache=False, **said).last_hidden_state

        masked = hidden()
        assert fuse_decoder(model) == 2
        assert sees_apart(model)
        told = hidden(cu_seq_lens_q=starts)
        together = hidden(cu_seq_lens_q=starts[[0, -1]].contiguous())
        assert apart(hidden(), masked) < 2e-2  # bf16: 8 bits, over two layers
        assert apart(told, masked) < 2e-2
        assert apart(together, masked) > 0.1

    @pytest.mark.parametrize("packed", [64, None], ids=["packed", "padded"])
    def test_recorded_steps_learn_what_plain_ones_do(self, packed) -> None:
        exact = steps(packed, Precision(CUDA, torch.float32))
        half = steps(packed, Precision(CUDA, torch.bfloat16))
        assert half == pytest.approx(exact, rel=2e-2)  # bf16 keeps 8 bits
        assert half != exact


def steps(packed: int | None, precision: Precision, count: int = 12) -> list[float]:
    """The losses of a run; in half precision fused and recorded, else neither."""
    model = qwen2().to(CUDA, precision.dtype)
    inject.adapt(model, choose_targets(model, "full"), 4, 4.0, 1)
    task = TextTask(model)
    flats = flatten(task.adapted())
    halves = Halves(task.adapted(), flats, precision.dtype) if precision.dtype != torch.float32 else None
    optimizer = make_optimizer("adamw", flats, {"model": 1e-2}, 0.01)
    step = EagerStep(task, flats, optimizer, precision, Accelerator(cpu=True), 1.0, halves=halves)
    if halves:
        assert fuse_decoder(model) == 2
        task.apart = sees_apart(model)
        step = CapturedStep(step, lambda batch: True, pytest.fail)
    losses = []
    for batch in islice(stream(packed).batches(0), count):
        step.add(batch, task.count(batch))
        task.end_step()
        losses.append(step.update({"model": 1e-2}).read()[0])
        tally = task.tally()
        assert tally.trained == len(batch["targets"])
        assert 0 <= tally.right <= tally.trained
    if isinstance(step, CapturedStep):
        assert any(shape.graph for shape in step._shapes.values())
    return losses
