"""Flat weights, precision, optimizers, schedules and the one step, on real LoRA layers."""

import json
import math

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from patina import checkpoint
from patina.engine.flat import flatten
from patina.engine.precision import Precision, choose_device, choose_precision
from patina.engine.scale import LossScale
from patina.engine.step import EagerStep
from patina.errors import PatinaError
from patina.lora import inject
from patina.optim import OPTIMIZERS, SCHEDULES, make_optimizer, schedule

CPU = Precision(torch.device("cpu"), torch.float32)
FP16 = Precision(torch.device("cpu"), torch.float16)


class Summing(nn.Module):
    """A task whose loss is the sum over rows of a small network's squared output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        inject.adapt(self.net, ("0", "2"), 4, 4.0, seed=1)

    def count(self, batch) -> int:
        return len(batch["x"])

    def adapted(self):
        return {"net": self.net}

    def prepare(self, batch):
        return batch

    def forward(self, batch):
        return (self.net(batch["x"]) - batch["y"]).square().sum()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(2)
    return {"x": torch.randn(8, 6, generator=generator), "y": torch.randn(8, 3, generator=generator)}


class Wide(Summing):
    """So many weights that 8-bit moments are used."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 2000), nn.Tanh(), nn.Linear(2000, 3))
        inject.adapt(self.net, ("0", "2"), 4, 4.0, seed=1)


def step_on(
    task: Summing, name: str = "adamw", clip: float = 0.0, rate: float = 1e-2, precision: Precision = CPU
) -> EagerStep:
    flats = flatten(task.adapted())
    optimizer = make_optimizer(name, flats, {"net": rate}, 0.01)
    return EagerStep(task, flats, optimizer, precision, Accelerator(cpu=True), clip)


def test_flat_weights_and_gradients_are_the_layers_own(batch) -> None:
    task = Summing()
    before = {key: value.clone() for key, value in inject.state(task.adapted()).items()}
    flats = flatten(task.adapted())
    assert all(torch.equal(before[key], value) for key, value in inject.state(task.adapted()).items())
    task(batch).backward()
    adapter = inject.adapters(task.net)["2"]
    flat = flats["net"]
    assert flat.grad is not None
    assert flat.grad.abs().sum() > 0
    assert adapter.B.grad is not None
    assert torch.equal(flat.grad[-adapter.B.numel() :], adapter.B.grad.flatten())
    with torch.no_grad():
        flat.fill_(0.5)
    assert (adapter.B == 0.5).all()
    assert flat.numel() == sum(value.numel() for value in before.values())


def test_adamw_on_the_flat_buffer_equals_adamw_on_the_layers(batch) -> None:
    flat_task, plain_task = Summing(), Summing()
    step = step_on(flat_task)
    params = [p for p in plain_task.parameters() if p.requires_grad]
    plain = torch.optim.AdamW(params, lr=1e-2, weight_decay=0.01)
    for _ in range(5):
        step.add(batch, 8)
        step.update({"net": 1e-2})
        (plain_task(batch) / 8).backward()
        plain.step()
        plain.zero_grad()
    for key, value in inject.state(plain_task.adapted()).items():
        torch.testing.assert_close(inject.state(flat_task.adapted())[key], value, rtol=1e-6, atol=1e-7)


def test_uneven_micro_batches_give_the_gradient_of_the_whole(batch) -> None:
    whole, parts = Summing(), Summing()
    one, many = step_on(whole), step_on(parts)
    one.add(batch, 8)
    for rows in (slice(0, 1), slice(1, 3), slice(3, 8)):
        many.add({key: value[rows] for key, value in batch.items()}, 8)
    torch.testing.assert_close(one.flats["net"].grad, many.flats["net"].grad, rtol=1e-6, atol=1e-7)


def test_clipping_returns_the_norm_before_and_clips_all_weights_together(batch) -> None:
    free, clipped = step_on(Summing()), step_on(Summing(), clip=1e-3)
    free.add(batch, 8)
    clipped.add(batch, 8)
    expected = free.flats["net"].grad.norm().item()
    seen = []
    clipped.optimizer.register_step_pre_hook(lambda *_: seen.append(clipped.flats["net"].grad.norm().item()))
    assert clipped.update({"net": 1e-2}).read()[1] == pytest.approx(expected)
    assert seen == [pytest.approx(1e-3, rel=1e-3)]
    assert not clipped.flats["net"].grad.any()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns(name, batch) -> None:
    task = Summing()
    step = step_on(task, name)
    losses = []
    for _ in range(40):
        step.add(batch, 8)
        losses.append(step.update({"net": 1e-2}).read()[0])
    assert losses[-1] < 0.8 * losses[0]


def test_8bit_really_keeps_8_bits() -> None:
    weight = nn.Parameter(torch.randn(5000))
    weight.grad = torch.randn(5000)
    optimizer = make_optimizer("adamw8bit", {"net": weight}, {"net": 1e-3}, 0.0)
    optimizer.step()
    assert optimizer.state[weight]["state1"].dtype == torch.uint8


def test_a_gradient_that_is_not_finite_changes_nothing(batch) -> None:
    task = Summing()
    step = step_on(task)
    before = step.flats["net"].detach().clone()
    step.add({**batch, "y": batch["y"] * math.nan}, 8)
    with pytest.raises(PatinaError, match="nothing was updated"):
        step.update({"net": 1e-2})
    assert torch.equal(step.flats["net"], before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bad_step_is_told_by_the_weight_and_the_rows(dtype, batch) -> None:
    step = step_on(Summing(), precision=Precision(torch.device("cpu"), dtype))
    step.add(batch | {"names": ["00.png"]}, 8)
    step.update({"net": 1e-2})
    step.add(batch | {"y": batch["y"] * math.nan, "names": [f"{number}.png" for number in range(1, 23)]}, 8)
    with pytest.raises(PatinaError, match=r"first in net\.0\.lora_[AB], of 1\.png, .*, 20\.png and 2 more: nothing"):
        step.update({"net": 1e-2})


def test_a_loss_that_is_not_finite_counts_though_its_gradient_is(batch) -> None:
    step = step_on(Summing())
    step.add(batch, 8)
    step._loss.fill_(math.inf)
    with pytest.raises(PatinaError, match=r"the loss is inf and the gradient's norm is [0-9.]+: nothing was updated"):
        step.update({"net": 1e-2})


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_as_many_bad_steps_are_left_out_as_may_be(name, batch) -> None:
    bad, said = batch | {"y": batch["y"] * math.nan}, []
    step, plain = (step_on(Wide(), name) for _ in range(2))
    step._update._bad = step._update._bad._replace(skip=2, say=said.append)
    for turn, rows in enumerate([batch, bad, batch, bad, batch]):
        step.add(rows, 8)
        step.update({"net": 1e-2})
        if turn % 2 == 0:
            plain.add(rows, 8)
            plain.update({"net": 1e-2})
    assert torch.equal(step.flats["net"], plain.flats["net"])
    ours, theirs = (checkpoint.optimizer_state(one.optimizer) for one in (step, plain))
    assert ours[1] == theirs[1]
    assert all(torch.equal(value, theirs[0][key]) for key, value in ours[0].items())
    assert [line.rpartition(": ")[2] for line in said] == [f"step left out, {n} of 2 that may be" for n in (1, 2)]
    step.add(bad, 8)
    with pytest.raises(
        PatinaError, match=r"nothing was updated; .* larger engine\.skip_bad_steps after 2 steps were left"
    ):
        step.update({"net": 1e-2})


def test_the_loss_scale_follows_torchs_own_rule() -> None:
    flags = [True, False, True, False, False, *[True] * 4001, False, *[True] * 2000]
    ours, theirs = LossScale(CPU.device, enabled=True), torch.amp.GradScaler("cpu")
    weight = nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    for place, finite in enumerate(flags):
        ours.adjust(torch.tensor(finite))
        theirs.scale(weight * (1.0 if finite else math.inf)).backward()
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
        assert ours.state_dict() == theirs.state_dict(), place
    again = LossScale(CPU.device, enabled=True)
    again.load_state_dict(json.loads(json.dumps(theirs.state_dict())))
    assert again.state_dict() == theirs.state_dict()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fp16_leaves_out_a_step_that_overflowed_as_torchs_scaler_does(name, batch) -> None:
    overflowing = (0, 3, 4)
    task, plain = Wide(), Wide()
    step, flats = step_on(task, name, precision=FP16), flatten(plain.adapted())
    optimizer = make_optimizer(name, flats, {"net": 1e-2}, 0.01)
    scaler = torch.amp.GradScaler("cpu")
    for turn in range(8):
        rows = batch | {"y": batch["y"] * (math.inf if turn in overflowing else 1.0)}
        step.add(rows, 8)
        _, norm = step.update({"net": 1e-2}).read()
        with FP16.autocast():
            loss = plain(rows) / 8
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=False)
        assert math.isfinite(norm) == (turn not in overflowing)
        assert torch.equal(step.flats["net"], flats["net"])
    ours, theirs = (checkpoint.optimizer_state(one) for one in (step.optimizer, optimizer))
    assert ours[1] == theirs[1]
    assert all(torch.equal(value, theirs[0][key]) for key, value in ours[0].items())


def test_an_fp16_scale_that_collapsed_stops_the_run(batch) -> None:
    step = step_on(Summing(), precision=FP16)
    for _ in range(27):  # from 2 ** 16 down to 2 ** -11
        step.add(batch | {"y": batch["y"] * math.inf}, 8)
        step.update({"net": 1e-2})
    step.add(batch, 8)
    with pytest.raises(PatinaError, match="overflows at every step"):
        step.update({"net": 1e-2})


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_rise_over_the_warmup_and_never_pass_one(name) -> None:
    factor = schedule(name, 100, 10)
    values = [factor(step) for step in range(1, 101)]
    assert values[:10] == pytest.approx([step / 11 for step in range(1, 11)])
    assert values[10] == pytest.approx(1)
    assert all(0 < value <= 1 for value in values)
    assert name == "constant" or values[-1] < 0.02


def test_cosine_is_the_cosine_of_the_papers() -> None:
    factor = schedule("cosine", 4, 0)
    assert [factor(step) for step in (1, 2, 3, 4)] == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-6)


def test_fp16_on_a_cpu_says_so_and_computes_in_fp32() -> None:
    precision = choose_precision("fp16", torch.device("cpu"))
    assert precision.dtype == torch.float32
    assert precision.note
    assert "fp32" in precision.note
    assert choose_precision("bf16", torch.device("cpu")).dtype == torch.bfloat16


def test_a_gpu_that_is_not_there_is_named() -> None:
    if torch.cuda.is_available():
        assert choose_device("cuda").type == "cuda"
    else:
        with pytest.raises(PatinaError, match=r"engine\.device"):
            choose_device("cuda")
