"""The step in half precision, and played from recordings on a GPU, gives the numbers of the fp32 eager reference."""

import warnings
from functools import partial

import golden
import pytest
import torch
from test_engine import Wide

from patina.engine.beside import aside, beside
from patina.engine.capture import CapturedStep
from patina.engine.flat import flatten
from patina.engine.halves import Halves
from patina.engine.precision import Precision
from patina.engine.step import EagerStep
from patina.families import FAMILIES
from patina.lora import inject
from patina.optim import OPTIMIZERS, make_optimizer

HALF_LOSS, HALF_NORM = 2e-3, 5e-2
"""Relative to fp32, over the first two steps at toy size: bf16 keeps 8 bits, so that each layer's output is off by up
to 4e-3; autocast, which is native but for the norms, measured 6e-4 and 2.3e-2 at most, native 7e-4 and 1.7e-2."""
CAPTURED = 1e-6
"""Relative, fp32 over 20 steps: the same kernels in the same order, where sums are made in one order alone. Left to
make them in any, a GPU does not repeat itself: two eager runs differed by up to 3.4e-4, captured from eager as much."""

CUDA = torch.device("cuda")
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]


@pytest.mark.parametrize("name", FAMILIES)
def test_native_bf16_is_as_near_to_fp32_as_bf16_can_be(name) -> None:
    exact = golden.measure(name, steps=2)
    native = golden.measure(name, Precision(torch.device("cpu"), torch.bfloat16), 2, native=True)
    assert native["loss"] == pytest.approx(exact["loss"], rel=HALF_LOSS)
    assert native["grad_norm"] == pytest.approx(exact["grad_norm"], rel=HALF_NORM)
    assert native != exact


def test_a_checkpointed_step_is_the_same_to_the_bit() -> None:
    assert golden.measure("sd15", steps=2, checkpointing=True) == golden.measure("sd15", steps=2)


def test_outside_of_a_pass_the_layers_hold_their_masters() -> None:
    task = Wide()
    flats = flatten(task.adapted())
    halves = Halves(task.adapted(), flats, torch.bfloat16)
    before = inject.state(task.adapted())
    with halves.in_place():
        inside = inject.state(task.adapted())
        assert {weight.dtype for weight in inside.values()} == {torch.bfloat16}
        assert all(torch.equal(inside[key], before[key].bfloat16()) for key in before)
        for weight in task.parameters():
            if weight.requires_grad:
                assert weight.grad is not None
                weight.grad.fill_(0.5)
    after = inject.state(task.adapted())
    assert all(after[key].data_ptr() == before[key].data_ptr() for key in before)
    assert all(bool((flat.grad == 0.5).all()) for flat in flats.values() if flat.grad is not None)
    with torch.no_grad():
        flats["net"].fill_(0.25)
    with halves.in_place():  # the copies are taken anew
        assert all(bool((weight == 0.25).all()) for weight in inject.state(task.adapted()).values())


@pytest.fixture
def in_one_order(monkeypatch):
    """Have a GPU make its sums in one order, as `engine.deterministic` does."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "again"])
@pytest.mark.parametrize("name", FAMILIES)
class TestOnAGpu:
    pytestmark = gpu

    def test_captured_is_eager(self, name, checkpointing, in_one_order) -> None:
        precision = Precision(CUDA, torch.float32)
        eager = golden.measure(name, precision, 20, checkpointing=checkpointing)
        captured = golden.measure(name, precision, 20, captured=True, checkpointing=checkpointing)
        for what, numbers in eager.items():
            assert captured[what] == pytest.approx(numbers, rel=CAPTURED), what

    @pytest.mark.parametrize("native", [False, True], ids=["autocast", "native"])
    def test_captured_fp16_is_near_to_fp32(self, name, checkpointing, native) -> None:
        exact = golden.measure(name, steps=2)
        half = Precision(CUDA, torch.float16)
        # four shapes in twelve micro-batches: all but the first two are recorded when they are first met
        captured = golden.measure(name, half, 6, captured=True, native=native, checkpointing=checkpointing)
        assert captured["loss"][:2] == pytest.approx(exact["loss"], rel=HALF_LOSS)
        assert captured["grad_norm"][:2] == pytest.approx(exact["grad_norm"], rel=HALF_NORM)


def on_gpu(name: str, capture: bool) -> tuple[EagerStep | CapturedStep, dict]:
    task = Wide().to(CUDA)
    flats = flatten(task.adapted())
    optimizer = make_optimizer(name, flats, {"net": 1e-2}, 0.01)
    half = Precision(CUDA, torch.float16)
    eager = EagerStep(task, flats, optimizer, half, golden.Accelerator(cpu=True), 1.0)
    eager.scaler.load_state_dict({"scale": 2.0**6, "_growth_tracker": 0})  # which nothing of this overflows at
    batch = {"x": torch.randn(8, 6, generator=torch.Generator().manual_seed(2)), "y": torch.ones(8, 3)}
    return CapturedStep(eager, lambda _: True, golden.fail) if capture else eager, batch


def test_jobs_aside_are_done_at_once_where_there_is_no_other_stream() -> None:
    done: list[int] = []
    aside(lambda: done.append(1), torch.ones(1))
    assert done == [1]
    with beside(torch.device("cpu")):
        aside(lambda: done.append(2), torch.ones(1))
        assert done == [1, 2]


class TestBeside:
    pytestmark = gpu

    def test_what_is_read_lives_until_it_was_read_and_all_is_done_at_the_end(self) -> None:
        total, size = torch.zeros(1024, 1024, device=CUDA), 1024 * 1024
        weight = torch.full((1024, 1024), 1e-3, device=CUDA)
        with beside(CUDA):
            for number in range(200):  # each of 4 MB, and the memory of the last is soon the next one's
                read = torch.full((1024, 1024), float(number), device=CUDA)
                aside(partial(total.addmm_, read, weight), read)
                del read
        assert float(total.sum()) / size == pytest.approx(sum(range(200)) * 1024 * 1e-3, rel=1e-5)

    def test_a_pass_that_fails_leaves_none_behind(self) -> None:
        done: list[int] = []

        def fail() -> None:
            with beside(CUDA):
                aside(lambda: done.append(1), torch.ones(1))
                raise RuntimeError("out of memory")

        with pytest.raises(RuntimeError, match="out"):
            fail()
        aside(lambda: done.append(2), torch.ones(1))
        assert done == [2]


class TestSteadyState:
    pytestmark = gpu

    @pytest.mark.parametrize("capture", [False, True], ids=["eager", "captured"])
    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_the_host_never_waits(self, name, capture) -> None:
        step, batch = on_gpu(name, capture)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says once that this mode does not see every way to wait
            for turn in range(8):
                torch.cuda.set_sync_debug_mode("error" if turn > 4 else "default")
                step.add(batch, 8)
                step.update({"net": 1e-2})
        torch.cuda.set_sync_debug_mode("default")

    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_a_step_that_overflowed_leaves_everything_as_it_was(self, name) -> None:
        step, batch = on_gpu(name, capture=True)
        other, _ = on_gpu(name, capture=False)
        for turn in range(8):
            broken = turn in (1, 5)
            step.add(batch | {"y": batch["y"] * (float("inf") if broken else 1)}, 8)
            step.update({"net": 1e-2}).read()
            if not broken:
                other.scaler.load_state_dict(step.scaler.state_dict())
                other.add(batch, 8)
                other.update({"net": 1e-2}).read()
        (ours,), (theirs,) = (list(one.optimizer.state.values()) for one in (step, other))
        assert int(ours["step"]) == int(theirs["step"]) == 6
        for key, part in ours.items():
            if isinstance(part, torch.Tensor):
                torch.testing.assert_close(part, theirs[key], rtol=1e-3, atol=1e-5)
