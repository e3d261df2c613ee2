"""Checkpoints: whole or absent, and everything in them comes back to the bit."""

import json
import re
import resource
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from patina import checkpoint, manifest
from patina.checkpoint import Checkpoint
from patina.errors import PatinaError
from patina.files import sweep
from patina.optim import OPTIMIZERS, make_optimizer


def some(step: int = 3) -> Checkpoint:
    return Checkpoint(step, {"unet.a.lora_A": torch.randn(2, 3)}, {"0/m": torch.arange(4)}, {"settings": {"seed": 1}})


def test_what_is_saved_comes_back(tmp_path) -> None:
    saved = some()
    path = checkpoint.save(tmp_path, saved)
    assert path.name == "step-000003"
    back = checkpoint.load(path)
    assert back.step == 3
    assert back.numbers == saved.numbers
    assert torch.equal(back.lora["unet.a.lora_A"], saved.lora["unet.a.lora_A"])
    assert torch.equal(back.optimizer["0/m"], saved.optimizer["0/m"])
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-000003"]


def test_the_newest_is_the_highest_step_and_half_a_folder_is_none(tmp_path) -> None:
    assert checkpoint.newest(tmp_path) is None
    for step in (5, 100, 20):
        checkpoint.save(tmp_path, some(step))
    (tmp_path / "step-000900").mkdir()
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    assert newest.name == "step-000100"


def test_the_newest_few_stay_and_later_ones_are_not_touched(tmp_path) -> None:
    for step in (5, 20, 999_999, 1_000_000, 2_000_000):
        checkpoint.save(tmp_path, some(step))
    (tmp_path / "step-000004-mine").mkdir()
    checkpoint.thin(tmp_path, 1_000_000, keep=2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step-000004-mine", "step-1000000", "step-2000000", "step-999999"]
    checkpoint.thin(tmp_path, 2_000_000, keep=5)
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_removal_that_was_interrupted_is_finished_at_the_next_start(tmp_path, monkeypatch) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, some(step))
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # the kill
    checkpoint.thin(tmp_path, 2, keep=1)
    assert checkpoint.newest(tmp_path) == tmp_path / "step-000002"
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.undo()
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000002"]


def test_a_failed_save_leaves_what_was_there(tmp_path) -> None:
    path = checkpoint.save(tmp_path, some())
    before = (path / checkpoint.TENSORS).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpoint.save(tmp_path, some()._replace(lora={"unet.a.lora_A": torch.zeros(100_000)}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (path / checkpoint.TENSORS).read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-000003"]


def test_damage_and_other_versions_are_refused_in_a_sentence(tmp_path) -> None:
    path = checkpoint.save(tmp_path, some())
    facts = json.loads((path / checkpoint.FACTS).read_text())
    for other in (1, 99):
        (path / checkpoint.FACTS).write_text(json.dumps({**facts, "format": other}))
        with pytest.raises(
            PatinaError, match=f"another version of Patina .format {other}, and this one reads 2 and 3."
        ):
            checkpoint.load(path)
    (path / checkpoint.FACTS).write_text(json.dumps(facts))
    (path / checkpoint.TENSORS).write_bytes(b"torn")
    with pytest.raises(PatinaError, match="not a whole checkpoint"):
        checkpoint.load(path)
    with pytest.raises(PatinaError, match="not a whole checkpoint"):
        checkpoint.load(tmp_path / "nowhere")


def spoil(path: Path, how: str) -> None:
    """Damage a checkpoint as disks do."""
    tensors, facts, listed = (path / name for name in (checkpoint.TENSORS, checkpoint.FACTS, manifest.NAME))
    content = bytearray(tensors.read_bytes())
    match how:
        case "cut short":
            tensors.write_bytes(content[:-1])
        case "one bit":
            content[-1] ^= 1
            tensors.write_bytes(content)
        case "lost":
            tensors.unlink()
        case "facts":
            facts.write_text(facts.read_text().replace('"seed": 1', '"seed": 2'))
        case "torn facts":
            facts.write_text(facts.read_text()[:20])
        case "unlisted":
            listed.unlink()
        case "torn list":
            listed.write_text(listed.read_text()[:20])
        case "another list":
            listed.write_text("[]")


HOW = ["cut short", "one bit", "lost", "facts", "torn facts", "unlisted", "torn list", "another list"]


@pytest.mark.parametrize("how", HOW)
def test_resume_walks_back_past_a_damaged_checkpoint_and_says_so(how, tmp_path) -> None:
    for step in (1, 2, 10):
        checkpoint.save(tmp_path, some(step))
    said = []
    assert checkpoint.newest_whole(tmp_path, said.append) == tmp_path / "step-000010"
    assert not said
    spoil(tmp_path / "step-000010", how)
    assert checkpoint.newest_whole(tmp_path, said.append) == tmp_path / "step-000002"
    (line,) = said
    assert line.startswith(f"{tmp_path}/step-000010: not a whole checkpoint (")
    assert line.endswith("looking for an earlier one")
    assert (tmp_path / "step-000010").is_dir()


def test_where_no_checkpoint_is_whole_nothing_is_written_over(tmp_path) -> None:
    assert checkpoint.newest_whole(tmp_path, print) is None
    spoil(checkpoint.save(tmp_path, some(1)), "lost")
    with pytest.raises(PatinaError, match="no checkpoint is whole; train anew in another output_dir"):
        checkpoint.newest_whole(tmp_path, print)


def test_a_users_own_folder_beside_them_is_passed_over(tmp_path) -> None:
    path = checkpoint.save(tmp_path, some(1))
    shutil.copytree(path, tmp_path / "step-000002-mine")
    assert checkpoint.newest(tmp_path) == path


def test_a_checkpoint_of_the_format_before_is_read(tmp_path) -> None:
    path = checkpoint.save(tmp_path, some())
    facts = json.loads((path / checkpoint.FACTS).read_text())
    (path / checkpoint.FACTS).write_text(json.dumps({**facts, "format": 2}))
    (path / manifest.NAME).unlink()
    assert checkpoint.load(path).step == 3


def test_what_killed_runs_left_is_swept_and_what_stepped_aside_comes_back(tmp_path) -> None:
    path = checkpoint.save(tmp_path, some(1))
    mine = tmp_path / ".notes.part"
    mine.mkdir()
    (tmp_path / ".step-000002.77.part").mkdir()
    shutil.copytree(path, tmp_path / ".step-000001.77.old")
    (tmp_path / ".step-000003.77.old").mkdir()
    sweep(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".notes.part", "step-000001", "step-000003"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_goes_on_to_the_bit(name, tmp_path) -> None:
    gradients = torch.randn(6, 5000, generator=torch.Generator().manual_seed(1))

    def fresh() -> tuple[nn.Parameter, torch.optim.Optimizer]:
        weight = nn.Parameter(torch.linspace(-1, 1, 5000))
        return weight, make_optimizer(name, {"unet": weight}, {"unet": 1e-2}, 0.01)

    def steps(weight, optimizer, rows) -> None:
        for row in rows:
            weight.grad = row.clone()
            optimizer.step()

    straight, optimizer = fresh()
    steps(straight, optimizer, gradients)

    first, optimizer = fresh()
    steps(first, optimizer, gradients[:3])
    tensors, numbers = checkpoint.optimizer_state(optimizer)
    path = checkpoint.save(tmp_path, Checkpoint(3, {}, tensors, {"optimizer": numbers}))

    saved = checkpoint.load(path)
    second, optimizer = fresh()
    second.data.copy_(first.data)
    checkpoint.set_optimizer_state(optimizer, saved.optimizer, saved.numbers["optimizer"])
    steps(second, optimizer, gradients[3:])
    assert torch.equal(second, straight)


def test_a_disk_with_too_little_room_is_a_sentence_and_the_last_checkpoint_stays(tmp_path) -> None:
    """A tensor that says one number a billion billion times takes no memory, and no disk has room for it."""
    path = checkpoint.save(tmp_path, some())
    before = (path / checkpoint.TENSORS).read_bytes()
    huge = torch.zeros(1).expand(10**18)
    left = shutil.disk_usage(tmp_path).free
    with pytest.raises(PatinaError) as refused:
        checkpoint.save(tmp_path, some()._replace(lora={"unet.a.lora_A": huge}))
    needed, room = re.findall(r"([\d,.]+) MB", str(refused.value))
    assert str(refused.value).startswith(f"{tmp_path}: ")
    assert number(needed) == pytest.approx(4e12)
    assert number(room) == pytest.approx(left / 1e6, rel=0.1)
    assert (path / checkpoint.TENSORS).read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-000003"]


def number(shown: str) -> float:
    return float(shown.replace(",", ""))
