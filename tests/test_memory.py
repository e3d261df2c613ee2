"""A step that runs out of memory is computed anew in less, and nobody can tell from its numbers.

The double is at the bottom: a card with room for so many numbers kept for the way back, where torch's own error is
raised for the next.
"""

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny
import torch
from accelerate import Accelerator
from diffusers.models.autoencoders.vae import Encoder
from safetensors.torch import load_file
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook

from patina import course, forecast
from patina.data.dataset import Item, Latent, heaviest
from patina.engine.capture import CapturedStep
from patina.engine.flat import flatten
from patina.engine.fused.blocks import fuse, recomputed
from patina.engine.fused.decoder import fuse_decoder
from patina.engine.ladder import RECOMPUTED, Ladder, Rung
from patina.engine.memory import again
from patina.engine.precision import Precision
from patina.engine.resting import RESTING, can_rest, rest
from patina.engine.step import EagerStep
from patina.errors import PatinaError
from patina.families import FAMILIES
from patina.loop import Plan
from patina.optim import make_optimizer
from patina.run import run
from patina.task import Batch, Task
from patina.tasks.image import ImageTask
from patina.tasks.text import TextTask
from patina.text.checkpointing import checkpoints, recompute_layers
from tests.test_run import SMALL as PICTURES
from tests.test_run import pictures
from tests.test_text_run import metrics, prepare, small
from tests.test_text_task import adapted as language
from tests.test_text_task import epoch
from tests.tiny_text import save

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
SAME = 2e-6
"""Relative: sums in fp32, taken in another order."""


class Card:
    """Counts the numbers that a forward pass keeps; full at more than `room`, or once at the time named."""

    def __init__(self, room: float = float("inf"), fails_at: int | None = None) -> None:
        """`fails_at`: which tensor, of all that are asked back in backward passes, finds the card full."""
        self.room, self.fails_at = room, fails_at
        self.kept = self.most = self.asked = 0

    @contextmanager
    def installed(self) -> Iterator[None]:
        handle = register_module_forward_pre_hook(self._begin)
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._keep, self._give):
                yield
        finally:
            handle.remove()

    def _begin(self, module: nn.Module, _: object) -> None:
        if isinstance(module, ImageTask | TextTask):
            self.kept = 0

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        self.kept += 0 if isinstance(tensor, nn.Parameter) else tensor.numel()
        self.most = max(self.most, self.kept)
        if self.kept > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate it all")
        return tensor

    def _give(self, tensor: torch.Tensor) -> torch.Tensor:
        self.asked += 1
        if self.asked == self.fails_at:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate it all")
        return tensor


def of_pictures(name: str) -> tuple[Task, Batch, Callable[[], object]]:
    family, pipe = FAMILIES[name], tiny.PIPELINES[name]()
    parts = tuple(tiny.adapted(family, pipe))
    task = ImageTask(family, pipe, family.objective(pipe.scheduler, 5.0), parts, seed=3)
    generator = torch.Generator().manual_seed(4)
    batch = {
        "mean": torch.randn(3, 4, 8, 8, generator=generator),
        "std": torch.full((3, 4, 8, 8), 0.1),
        "captions": ["a red house", "two fish, oil painting " * 20, ""],
        "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 3),
        "epoch": 0,
        "places": [0, 1, 2],
    }
    return task, batch, lambda: task.recompute(drops=False)


def of_texts(packed: int | None) -> tuple[Task, Batch, Callable[[], object]]:
    task = language()
    batch = max(epoch(3, packed), key=lambda batch: len(batch["input_ids"]))
    return task, batch, lambda: recompute_layers(task.model, again(drops=False))


CASES = {
    "pictures": lambda: of_pictures("sd15"),
    "rows": lambda: of_texts(None),
    "packed": lambda: of_texts(64),
}


def step_on(task: Task, rungs: list[Rung] | None, says: list[str]) -> Ladder:
    flats = flatten(task.adapted())
    optimizer = make_optimizer("adamw", flats, dict.fromkeys(flats, 1e-3), 0.0)
    precision = Precision(torch.device("cpu"), torch.float32)
    eager = EagerStep(task, flats, optimizer, precision, Accelerator(cpu=True), 0.0)
    ends = [getattr(task, name, lambda: None) for name in ("forget", "end_step")]
    return Ladder(eager, rungs, "less", says.append, *ends)


def gradient(step: Ladder) -> torch.Tensor:
    return torch.cat([flat.grad.flatten() for flat in step.eager.flats.values()])


def added(step: Ladder, batch: Batch, card: Card) -> Card:
    """The card once it has computed the batch's gradient, as the first of a step."""
    step.eager.clear()
    step._added.clear()
    with card.installed():
        step.add(batch, step.eager.task.count(batch))
    return card


@pytest.mark.parametrize("case", CASES)
def test_every_rung_has_the_loss_and_the_gradient_of_the_whole(case) -> None:
    whole, batch, _ = CASES[case]()
    reference = step_on(whole, None, [])
    used = added(reference, batch, Card())
    task, _, recompute = CASES[case]()
    ladder = step_on(task, [Rung(RECOMPUTED, recompute)], said := [])
    rows = len(whole.split(whole.prepare(batch), 1))
    for parts in (None, *range(rows - 1, 0, -1)):
        added(ladder, batch, Card(room=0.95 * used.most))
        assert (ladder.eager.most, len(said)) == (parts, len(ladder.taken))
        assert ladder.eager._loss.item() == pytest.approx(reference.eager._loss.item(), rel=SAME)
        assert (gradient(ladder) - gradient(reference)).norm() <= SAME * gradient(reference).norm()
        used = added(ladder, batch, Card())
    assert [line.removeprefix("engine: out of memory; ") for line in said] == ladder.taken
    assert ladder.taken[0] == RECOMPUTED
    with pytest.raises(PatinaError, match=r"a step runs out of memory, although gradient checkpointing .*; write less"):
        added(ladder, batch, Card(room=10))


WITHIN = ("conv1", "attn2.to_q", "o_proj")
"""A layer of each kind of block, which is called also where the block is ours."""


def resting(blocks: list[nn.Module]) -> set[nn.Parameter]:
    return {weight for block in blocks for weight in block.parameters()}


def blocks_of(task: Task) -> list[nn.Module]:
    return recomputed(task.pipe.unet) if isinstance(task, ImageTask) else checkpoints(task.model)


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("case", ["pictures", "rows"])
def test_weights_that_rest_come_a_block_at_a_time_and_change_no_bit(case, fused) -> None:
    task, batch, recompute = CASES[case]()
    recompute()
    if fused:
        assert (fuse(task.pipe.unet) if isinstance(task, ImageTask) else fuse_decoder(task.model)) > 0
    ladder = step_on(task, [], [])
    added(ladder, batch, Card())
    before = (ladder.eager._loss.item(), gradient(ladder))
    blocks = blocks_of(task)
    assert can_rest(blocks)
    rest(blocks)
    come: list[weakref.ref[nn.Parameter]] = []
    alive: list[int] = []

    def visit(norm: nn.Module, _: object) -> None:
        (block,) = (block for block in blocks if norm in block.modules())
        come.extend(weakref.ref(weight) for weight in block.parameters() if not weight.requires_grad)
        alive.append(sum(one() is not None for one in come))
        assert not {one() for one in come[-1:]} & at_rest

    at_rest = resting(blocks)
    for block in blocks:
        layer = next(part for name, part in block.named_modules() if name.endswith(WITHIN))
        layer.register_forward_pre_hook(visit)
    added(ladder, batch, Card())
    assert ladder.eager._loss.item() == before[0]
    assert torch.equal(gradient(ladder), before[1])
    assert len(alive) >= 1.9 * len(blocks)  # but for the first, all came again
    frozen = [sum(1 for weight in block.parameters() if not weight.requires_grad) for block in blocks]
    assert max(alive) <= 2 * max(frozen)  # autograd lets go of one block's while the next one's come
    assert resting(blocks) == at_rest
    assert not any(one() for one in come)


def test_weights_rest_last_of_all_where_not_even_a_row_fits() -> None:
    task, batch, recompute = CASES["rows"]()
    whole = added(step_on(CASES["rows"]()[0], None, []), batch, Card())
    flats = flatten(task.adapted())
    precision = Precision(torch.device("cpu"), torch.float32)
    optimizer = make_optimizer("adamw", flats, dict.fromkeys(flats, 1e-3), 0.0)
    eager = EagerStep(task, flats, optimizer, precision, Accelerator(cpu=True), 0.0)
    taken: list[str] = []
    last = Rung("rests", lambda: taken.append("rest"))
    rungs = [Rung(RECOMPUTED, recompute)]
    ladder = Ladder(eager, rungs, "less", lambda _: None, task.forget, task.end_step, last)
    assert whole.most > 10
    with pytest.raises(PatinaError, match=r"in parts of 1, which add up to the same; rests; write less"):
        added(ladder, batch, Card(room=10))
    assert taken == ["rest"]


@pytest.mark.usefixtures("texts")
@pytest.mark.parametrize("case", ["pictures", "rows"])
def test_a_run_comes_down_to_weights_that_rest_and_foresees_it(case, capsys) -> None:
    task, batch, recompute = CASES[case]()
    reference = step_on(task, None, [])
    added(reference, batch, Card())
    loss, wanted = reference.eager._loss.item(), gradient(reference).clone()
    blocks, card = blocks_of(task), Card(room=10)
    frozen = {weight for weight in resting(blocks) if not weight.requires_grad}

    def begin_anew() -> None:
        getattr(task, "forget", lambda: None)()
        if not frozen & resting(blocks):  # the room that they leave
            card.room = float("inf")

    ladder = course.ladder(small(), reference.eager, [Rung(RECOMPUTED, recompute)], "less", begin_anew, blocks=blocks)
    with card.installed():
        forecast.measure(ladder, batch, Plan(1, 1, 1, dict.fromkeys(ladder.eager.flats, 1e-3), lambda step: 1.0))
    rows = len(task.split(task.prepare(batch), 1))
    assert (ladder.taken[0], ladder.taken[-1], ladder.eager.most) == (RECOMPUTED, RESTING, 1)
    assert len(ladder.taken) == 2 + (rows - 1).bit_length()
    assert capsys.readouterr().out.rstrip().endswith(f"engine: out of memory; {RESTING}")
    added(ladder, batch, Card())
    assert ladder.eager._loss.item() == pytest.approx(loss, rel=SAME)
    assert (gradient(ladder) - wanted).norm() <= SAME * wanted.norm()


def test_parts_of_a_batch_of_sdxl_are_told_what_the_whole_is_told() -> None:
    task, batch, _ = of_pictures("sdxl")
    prepared = task.prepare(batch)
    parts = task.split(prepared, 2)
    assert [part["places"] for part in parts] == [[0, 1], [2]]
    tensors = {name: part for name, part in prepared.items() if isinstance(part, torch.Tensor)}
    assert tensors.keys() == {"latents", "noise", "t", "time_ids", "ids", "ids_2"}
    assert all(torch.equal(torch.cat([part[name] for part in parts]), whole) for name, whole in tensors.items())


def test_a_look_ahead_leaves_no_trace_but_the_rung() -> None:
    task, batch, recompute = CASES["rows"]()
    ladder = step_on(task, [Rung(RECOMPUTED, recompute)], says := [])
    ladder.add(batch, 9)
    ladder.update(dict.fromkeys(ladder.eager.flats, 1e-3))
    before = [flat.detach().clone() for flat in ladder.eager.flats.values()]
    state = {key: part.clone() for key, part in ladder.optimizer.state[ladder.eager.flats["model"]].items()}
    random, tally = torch.get_rng_state(), task.tally()
    task.register_forward_pre_hook(lambda *_: torch.manual_seed(0) and None)  # as dropout does
    card = Card(room=0)
    with card.installed(), pytest.raises(PatinaError):
        ladder.look_ahead(batch)
    assert len(says) == 3
    ladder.look_ahead(batch)
    assert tally.trained
    task.end_step()
    assert task.tally() == (0, 0, 0)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(map(torch.equal, before, ladder.eager.flats.values()))
    assert all(
        torch.equal(part, state[key]) for key, part in ladder.optimizer.state[ladder.eager.flats["model"]].items()
    )
    assert not gradient(ladder).any()
    assert not ladder.eager._loss
    assert not ladder._added


def test_other_errors_and_memory_off_are_not_taken_for_it() -> None:
    task, batch, _ = CASES["rows"]()
    ladder = step_on(task, None, [])
    with Card(room=0).installed(), pytest.raises(PatinaError, match=r"write engine\.memory: auto, or less"):
        ladder.add(batch, 1)
    with pytest.raises(RuntimeError, match="expanded size"):
        ladder.add({**batch, "position_ids": batch["position_ids"][:, :1].expand(7, 7)}, 1)


def test_the_heaviest_batch_is_the_largest_that_an_epoch_has() -> None:
    def item(name: str, side: int) -> Item:
        latent = torch.zeros(4, 8, side)
        shown = (Latent(latent, latent, (64,) * 6),)
        return Item(Path(name), name, (8 * side, 64), shown, 1, Path("pictures"))

    items = [item("wide", 20), *(item("a" * number, 8) for number in (1, 5, 3))]
    assert heaviest(items, 1)["captions"] == ["wide"]
    assert heaviest(items, 2)["captions"] == ["wide"]
    assert heaviest(items, 3)["captions"] == ["aaaaa", "aaa", "a"]
    assert heaviest(items, 3)["mean"].shape == (3, 4, 8, 8)


@pytest.fixture
def texts(tmp_path, monkeypatch) -> Path:
    prepare(tmp_path, save(tmp_path / "llama"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def adapter(folder: str) -> Path:
    return Path("out") / folder / folder / "adapter_model.safetensors"


def test_a_run_that_meets_it_midway_writes_the_same_bytes(texts, capsys) -> None:
    words = ["gradient_accumulation_steps=2", "network.dropout=0.1", "max_steps=4"]
    with (whole := Card()).installed():
        run(small("output_dir=out/whole", *words))
    with (card := Card(fails_at=whole.asked * 11 // 16)).installed():
        run(small("output_dir=out/again", *words))
    assert card.asked > card.fails_at
    assert capsys.readouterr().out.count("engine: out of memory; gradient checkpointing") == 1
    assert adapter("again").read_bytes() == adapter("whole").read_bytes()
    accuracies = [[line["token_accuracy"] for line in metrics(f"out/{name}")] for name in ("whole", "again")]
    assert accuracies[0] == accuracies[1]


def test_a_run_that_goes_on_in_parts_learns_the_same_and_so_does_one_resumed(texts, capsys) -> None:
    words = ["gradient_checkpointing=true", "text.packing=false", "scheduler=constant"]
    run(small("output_dir=out/whole", *words))
    with (once := Card(fails_at=60)).installed():
        run(small("output_dir=out/parts", *words, "max_steps=4"))
        run(small("output_dir=out/parts", *words, "resume=auto"))
    assert once.asked > 60
    assert capsys.readouterr().out.count("in parts of 1, which add up to the same") == 1
    whole, parts = load_file(adapter("whole")), load_file(adapter("parts"))
    for key, weight in whole.items():
        torch.testing.assert_close(parts[key], weight, rtol=1e-3, atol=1e-5)


def test_a_run_on_pictures_goes_down_and_writes_the_same_bytes(tmp_path, monkeypatch, capsys) -> None:
    pictures(tmp_path / "pictures", count=2)
    tiny.save_sd15(tmp_path / "base")
    (tmp_path / "run.yaml").write_text(PICTURES)
    monkeypatch.chdir(tmp_path)
    words = [
        "max_steps=2",
        "save_steps=0",
        "save_precision=fp32",
        "metadata=none",
        "optimizer=adamw",
        "preview.every=0",
    ]
    with (used := Card()).installed():
        whole = run(small("output_dir=out/whole", *words))
    with Card(room=0.9 * used.most).installed():
        again = run(small("output_dir=out/again", *words))
    assert "engine: out of memory; gradient checkpointing" in capsys.readouterr().out
    assert again.read_bytes() == whole.read_bytes()


FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate it all")


def test_memory_that_runs_out_beside_the_steps_is_a_sentence(tmp_path, monkeypatch) -> None:
    pictures(tmp_path / "pictures", count=2)
    tiny.save_sd15(tmp_path / "base")
    (tmp_path / "run.yaml").write_text(PICTURES)
    monkeypatch.chdir(tmp_path)
    words = ["max_steps=3", "save_steps=2", "optimizer=adamw", "preview.every=0"]

    def loading(module: nn.Module, _: object) -> None:
        if isinstance(module, Encoder):
            raise FULL

    handle = register_module_forward_pre_hook(loading)
    with pytest.raises(PatinaError, match=r"loading: the device's memory ran out; end other programs .*quantize: 4bit"):
        run(small("output_dir=out/a", *words))
    handle.remove()
    steps = []

    def updating(*_: object) -> None:
        steps.append(1)
        if len(steps) == 3:
            raise FULL

    handle = register_optimizer_step_pre_hook(updating)
    with pytest.raises(PatinaError, match=r"training: the device's memory ran out.*resume=auto goes on"):
        run(small("output_dir=out/a", *words))
    handle.remove()
    again = run(small("output_dir=out/a", *words, "resume=auto"))
    whole = run(small("output_dir=out/b", *words))
    assert load_file(again).keys() == load_file(whole).keys()
    assert all(torch.equal(one, load_file(whole)[key]) for key, one in load_file(again).items())


def on_a_gpu(capture: bool, says: list[str]) -> tuple[Ladder, Batch]:
    """A step of pictures so large that what it keeps outweighs the blocks in which torch takes memory."""
    family, pipe = FAMILIES["sd15"], tiny.sd15()
    parts = tuple(tiny.adapted(family, pipe))
    for name in parts:
        getattr(pipe, name).to("cuda")
    task = ImageTask(family, pipe, family.objective(pipe.scheduler, None).to("cuda"), parts, seed=3)
    flats = flatten(task.adapted())
    optimizer = make_optimizer("adamw", flats, dict.fromkeys(flats, 1e-3), 0.0)
    precision = Precision(torch.device("cuda"), torch.float32)
    eager = EagerStep(task, flats, optimizer, precision, Accelerator(cpu=True), 0.0)
    step = CapturedStep(eager, lambda _: True, says.append) if capture else eager
    rungs = [Rung(RECOMPUTED, lambda: task.recompute(drops=False))]
    latents = torch.randn(8, 4, 64, 64, generator=torch.Generator().manual_seed(4))
    facts = {"mean": latents, "std": torch.full_like(latents, 0.1), "captions": ["a red house"] * 8}
    batch = {**facts, "time_ids": torch.zeros(8, 6), "epoch": 0, "places": list(range(8))}
    return Ladder(step, rungs, "less", says.append, lambda: None, lambda: None), batch


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("share", [0.6, 0.2])
@pytest.mark.parametrize("capture", [False, True], ids=["eager", "captured"])
@torch.backends.cudnn.flags(allow_tf32=False)
def test_a_card_with_less_memory_computes_the_same(capture, share) -> None:
    whole, batch = on_a_gpu(capture=False, says=[])
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    whole.add(batch, 8)
    needed = torch.cuda.max_memory_allocated() - before
    expected = gradient(whole).cpu()
    del whole
    gc.collect()
    torch.cuda.empty_cache()
    ladder, _ = on_a_gpu(capture, said := [])
    limit = torch.cuda.memory_allocated() + share * needed
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.mem_get_info()[1])
    try:
        ladder.look_ahead(batch)
        assert said
        assert said == [f"engine: out of memory; {what}" for what in ladder.taken]
        assert not gradient(ladder).any()
        ladder.add(batch, 8)
        torch.testing.assert_close(gradient(ladder).cpu(), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
        ladder.update(dict.fromkeys(ladder.eager.flats, 1e-3)).read()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert torch.cuda.current_stream() == torch.cuda.default_stream()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@torch.backends.cudnn.flags(allow_tf32=False)
def test_weights_at_rest_leave_the_card_and_change_nothing() -> None:
    ladder, batch = on_a_gpu(capture=False, says=[])
    task = ladder.eager.task
    task.recompute(drops=False)
    ladder.add(batch, 8)
    expected = gradient(ladder).cpu()
    ladder.eager.clear()
    blocks = recomputed(task.pipe.unet)
    frozen = sum(weight.nbytes for block in blocks for weight in block.parameters() if not weight.requires_grad)
    before = torch.cuda.memory_allocated()
    rest(blocks)
    assert before - torch.cuda.memory_allocated() >= frozen
    ladder.add(batch, 8)
    found = gradient(ladder).cpu()
    assert (found - expected).norm() <= SAME * expected.norm()
    assert before - torch.cuda.memory_allocated() >= 0.9 * frozen
