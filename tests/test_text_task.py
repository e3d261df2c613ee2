"""The text task in the loop: one gradient whatever the batches, base frozen, memory saved, quantised bases."""

import socket
import subprocess
import sys
from functools import partial
from itertools import islice
from pathlib import Path

import bitsandbytes
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from patina.engine.flat import flatten
from patina.engine.memory import again
from patina.engine.precision import Precision
from patina.engine.step import EagerStep
from patina.errors import PatinaError
from patina.lora import inject
from patina.tasks.text import TextTask
from patina.text.checkpointing import recompute_layers
from patina.text.load import load_model
from patina.text.pack import Stream
from patina.text.targets import choose_targets
from tests.test_text_pack import rows
from tests.tiny_text import llama, qwen2, save

ROOT = Path(__file__).resolve().parents[1]


def adapted(model=None, plain_head: bool = True) -> TextTask:
    """A task whose LoRA has values already, as if it had trained."""
    model = model or llama()
    inject.adapt(model, choose_targets(model, "full"), 4, 8.0, seed=0)
    generator = torch.Generator().manual_seed(1)
    for adapter in inject.adapters(model).values():
        nn.init.normal_(adapter.B, std=0.05, generator=generator)
    return TextTask(model, plain_head)


def gradient(batches, task: TextTask | None = None, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The flat gradient of one optimizer step over `batches`, as the engine adds it up."""
    task = task or adapted()
    flats = flatten(task.adapted())
    flat = flats["model"]
    optimizer = torch.optim.SGD([flat], lr=0.0)
    step = EagerStep(task, flats, optimizer, Precision(torch.device("cpu"), dtype), Accelerator(cpu=True), 0.0)
    terms = sum(task.count(batch) for batch in batches)
    for batch in batches:
        step.add(batch, terms)
    assert flat.grad is not None
    return flat.grad.clone()


def stream(batch_size: int, packed: int | None) -> Stream:
    return Stream(rows(), batch_size, 0, packed, pad=256)


def epoch(batch_size: int, packed: int | None) -> list:
    set_of = stream(batch_size, packed)
    return list(islice(set_of.batches(0), set_of.per_epoch()))


@pytest.mark.parametrize("packed", [None, 32, 64])
@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_batches_packing_and_accumulation_do_not_change_the_gradient(batch_size, packed) -> None:
    whole = gradient(epoch(10, None))
    found = gradient(epoch(batch_size, packed))
    assert (found - whole).norm() < 1e-6 * whole.norm()


def test_the_mean_of_means_would_be_another_gradient() -> None:
    """What the sum and one division are for: rows have unevenly many answers."""
    whole, task = gradient(epoch(10, None)), adapted()
    flat = flatten(task.adapted())["model"]
    for batch in epoch(1, None):
        (task(batch) / task.count(batch) / len(rows())).backward()
    assert flat.grad is not None
    assert (flat.grad - whole).norm() > 0.05 * whole.norm()


def test_two_processes_have_the_gradient_of_one(tmp_path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    command += [str(ROOT / "tests" / "two_processes.py"), str(tmp_path / "two.pt")]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    one, two = gradient(epoch(2, 32)), torch.load(tmp_path / "two.pt")
    assert (two - one).norm() < 1e-6 * one.norm()


@pytest.mark.parametrize("build", [llama, qwen2])
def test_training_moves_the_lora_alone_and_lowers_the_loss(build) -> None:
    model = build()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    task, batches = adapted(model), epoch(4, None)
    flats = flatten(task.adapted())
    optimizer = torch.optim.AdamW(list(flats.values()), lr=1e-2)
    step = EagerStep(task, flats, optimizer, Precision(torch.device("cpu"), torch.float32), Accelerator(cpu=True), 1.0)
    losses = []
    for _ in range(12):
        terms = sum(task.count(batch) for batch in batches)
        for batch in batches:
            step.add(batch, terms)
        loss, _ = step.update({"model": 1e-2}).read()
        losses.append(loss)
    assert losses[-1] < 0.9 * losses[0]
    after = {name.replace(".base_layer", ""): weight for name, weight in model.state_dict().items()}
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_the_tally_is_what_was_computed_and_begins_anew() -> None:
    task, batches = adapted(), epoch(2, 32)
    for batch in batches:
        task(task.prepare(batch))
    task.end_step()
    tally = task.tally()
    assert tally.trained == sum(task.count(batch) for batch in batches)
    assert tally.tokens == sum(len(row.ids) for row in rows())
    right = 0
    for row in rows():
        logits = task.model(input_ids=row.ids.long()[None]).logits[0, :-1]
        right += int((logits.argmax(-1) == row.ids[1:])[row.trained[1:]].sum())
    assert tally.right == right
    task.end_step()
    assert task.tally() == (0, 0, 0)


def test_a_head_that_does_more_than_multiply_is_asked_whole() -> None:
    """The gradient through the model's own logits is that through chunks of its last hidden states."""
    one, other = gradient(epoch(3, 64)), gradient(epoch(3, 64), adapted(plain_head=False))
    assert (one - other).norm() < 1e-6 * one.norm()


def test_layers_computed_twice_give_the_same_gradient_and_keep_less() -> None:
    task, kept = adapted(), {}
    batches = epoch(3, 64)
    for name in ("all", "again"):
        if name == "again":
            recompute_layers(task.model, again(drops=False))
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(partial(_noted, saved), lambda tensor: tensor):
            task(batches[0])
        kept[name] = sum(saved)
    assert kept["again"] < 0.5 * kept["all"]
    whole = gradient(batches)
    assert (gradient(batches, task) - whole).norm() < 1e-6 * whole.norm()


def _noted(saved: list[int], tensor: torch.Tensor) -> torch.Tensor:
    saved.append(tensor.numel())
    return tensor


def test_targets_are_all_linear_layers_but_the_head_or_those_of_attention() -> None:
    model = llama()
    full, attention = choose_targets(model, "full"), choose_targets(model, "attn")
    assert len(full) == 14
    assert "lm_head" not in full
    assert {path.rpartition(".")[2] for path in attention} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert choose_targets(model, ["q_proj"]) == ["q_proj"]
    with pytest.raises(PatinaError, match="'q_prj' names no layer of this LlamaForCausalLM; nearest: q_proj"):
        inject.adapt(model, choose_targets(model, ["q_prj"]), 4, 4.0, 0)


@pytest.mark.parametrize("bits", ["4bit", "fp8"])
def test_a_base_in_few_bits_trains_as_the_base_that_these_bits_spell(tmp_path, bits) -> None:
    place = str(save(tmp_path, llama(hidden_size=64, intermediate_size=128)))
    rounded = load_model(place, torch.float32, torch.device("cpu"), bits)
    exact = load_model(place, torch.float32, torch.device("cpu"))
    for path in choose_targets(exact, "full"):
        spelt = SPELT[bits](rounded.get_submodule(path))
        assert not torch.equal(spelt, exact.get_submodule(path).weight)
        exact.get_submodule(path).weight.data = spelt
    assert type(rounded.lm_head) is torch.nn.Linear
    found, whole = (gradient(epoch(4, None), adapted(model)) for model in (rounded, exact))
    assert (found - whole).norm() < 1e-5 * whole.norm()


def four_bits(layer) -> torch.Tensor:
    assert layer.weight.dtype == torch.uint8
    return bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)


def eight_bits(layer) -> torch.Tensor:
    assert layer.weight.dtype == torch.float8_e4m3fn
    return layer.weight.float() * layer.scale


SPELT = {"4bit": four_bits, "fp8": eight_bits}


def test_a_base_in_eight_bits_is_nearly_the_base(tmp_path) -> None:
    """A fifth of the gradient is what rounding weights and inputs to 8 bits may cost so narrow a model; noise: 1.4."""
    place = str(save(tmp_path, llama(hidden_size=64, intermediate_size=128)))
    models = [load_model(place, torch.float32, torch.device("cpu"), bits) for bits in ("8bit", "none")]
    assert models[0].get_submodule("model.layers.0.self_attn.q_proj").weight.dtype == torch.int8
    found, whole = (gradient(epoch(4, None), adapted(model)) for model in models)
    assert 0 < (found - whole).norm() < 0.2 * whole.norm()


def test_a_place_without_a_language_model_is_one_sentence(tmp_path) -> None:
    for place in (tmp_path, tmp_path / "gone", Path("data/demo/base")):
        with pytest.raises(PatinaError, match=r"base_model: .*cannot be loaded as a language model"):
            load_model(str(place), torch.float32, torch.device("cpu"))
