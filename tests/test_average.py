"""The average of the weights is what is shown and saved; the weights themselves go on as if there were none."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from patina import checkpoint, configfile
from patina.engine.average import Average
from patina.run import run
from tests.faults import runs

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def test_the_average_follows_as_the_formula_says() -> None:
    flat = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    average, expected = Average({"net": flat}, 0.4), flat.detach().double()
    for step in range(1, 9):
        with torch.no_grad():
            flat.add_(step)
        average.note(torch.tensor(step != 5))
        if step == 5:  # left out
            continue
        kept = min(0.4, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * flat.detach().double()
    live = flat.detach().clone()
    with average.in_place():
        torch.testing.assert_close(flat.detach().double(), expected, rtol=1e-6, atol=0)
    assert torch.equal(flat, live)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> runs.Run:
    return runs.RUNS["texts"](tmp_path_factory.mktemp("average") / "texts")


def trained(home: runs.Run, name: str, *more: str) -> tuple[Path, checkpoint.Checkpoint]:
    words = [word for word in home.words if "=" in word and not word.startswith(("resume", "preview"))]
    last_of_each = {word.partition("=")[0]: word for word in (*words, f"output_dir=out/{name}", *more)}
    path = run(configfile.load(Path("run.yaml"), list(last_of_each.values())))
    return path, checkpoint.load(checkpoint.place(Path("out", name, "checkpoints"), runs.STEPS))


def test_the_file_holds_the_average_and_the_checkpoint_both(home, monkeypatch) -> None:
    monkeypatch.chdir(home.home)
    plain, without = trained(home, "plain", "preview.every=0", "save_precision=fp32")
    averaged, held = trained(home, "averaged", "preview.every=0", "save_precision=fp32", "ema_decay=0.9")
    assert without.lora.keys() == held.lora.keys()
    assert all(torch.equal(held.lora[key], part) for key, part in without.lora.items())
    assert held.numbers["average"] == runs.STEPS
    ours, theirs = (load_file(path / "adapter_model.safetensors") for path in (averaged, plain))
    saved, last = (sorted(part.norm().item() for part in state.values()) for state in (held.average, held.lora))
    assert sorted(part.norm().item() for part in ours.values()) == pytest.approx(saved, rel=1e-6)
    assert sorted(part.norm().item() for part in theirs.values()) == pytest.approx(last, rel=1e-6)
    assert saved != pytest.approx(last, rel=1e-4)


def test_saves_on_the_way_and_the_best_state_are_averages_too(home, monkeypatch) -> None:
    monkeypatch.chdir(home.home)
    words = ["preview.every=0", "save_precision=fp32", "ema_decay=0.9", "save_steps=2", "learning_rate=0.05"]
    words += ["validation_data=other.jsonl", "validation.every=2", "validation.patience=9"]
    final, last = trained(home, "kept", *words)
    for step in (2, 4):
        held = checkpoint.load(checkpoint.place(Path("out/kept/checkpoints"), step))
        assert norms(load_file(f"out/kept/kept-{step:06d}/adapter_model.safetensors")) == norms(held.average)
        assert norms(held.average) != norms(held.lora)
    best = last.numbers["best"]["step"]
    of_best = checkpoint.load(checkpoint.place(Path("out/kept/checkpoints"), best)).average
    assert all(torch.equal(last.best[key], part) for key, part in of_best.items())
    assert norms(load_file(final / "adapter_model.safetensors")) == norms(of_best)


def test_the_best_state_is_saved_though_the_average_went_on(home, monkeypatch) -> None:
    monkeypatch.chdir(home.home)
    rows = [{"instruction": f"other {n}?", "output": "QQ77 ~~"} for n in range(3)]  # less likely with every step
    Path("apart.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["preview.every=0", "save_precision=fp32", "ema_decay=0.9", "save_steps=2", "learning_rate=0.05"]
    words += ["validation_data=apart.jsonl", "validation.every=2", "validation.patience=9"]
    final, last = trained(home, "early", *words)
    best = last.numbers["best"]["step"]
    assert best == 2 < runs.STEPS
    of_best = checkpoint.load(checkpoint.place(Path("out/early/checkpoints"), best)).average
    assert norms(load_file(final / "adapter_model.safetensors")) == norms(of_best) != norms(last.average)


def norms(state: dict[str, torch.Tensor]) -> list[float]:
    """Lengths of the tensors, in order, by which they are told apart whatever they are called."""
    return [round(number, 6) for number in sorted(part.norm().item() for part in state.values())]


def test_a_run_that_repeats_itself_is_the_same_run_on_a_cpu(home, monkeypatch) -> None:
    monkeypatch.chdir(home.home)
    _, one = trained(home, "as it is", "preview.every=0")
    _, other = trained(home, "repeatable", "preview.every=0", "engine.deterministic=true")
    assert all(torch.equal(other.lora[key], part) for key, part in one.lora.items())
    assert not torch.are_deterministic_algorithms_enabled()
