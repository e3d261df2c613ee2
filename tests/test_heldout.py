"""What is held out of a set of pictures stays the same, is measured the same way every time, and disturbs nothing."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_run import SMALL, losses, pictures
from tiny import save_sd15, sd15

from patina import configfile
from patina.data.captions import Captioned
from patina.data.dataset import Item, Latent
from patina.errors import PatinaError
from patina.families.sd15 import SD15
from patina.heldout import EPOCH, TIMES, HeldOut, split
from patina.objective import ddpm
from patina.run import run
from patina.tasks.image import ImageTask


def captioned(count: int) -> list[Captioned]:
    return [Captioned(Path(f"set/{number:03}.png"), "x") for number in range(count)]


@pytest.mark.parametrize(("count", "share", "wanted"), [(100, 0.1, 10), (5, 0.1, 1), (2, 0.99, 1), (7, 0.5, 4)])
def test_a_share_is_held_out_and_the_rest_is_trained_on(count, share, wanted) -> None:
    kept, held = split(captioned(count), share, 3)
    assert len(held) == wanted
    assert sorted(pair.path for pair in kept + held) == [pair.path for pair in captioned(count)]
    assert held == sorted(held, key=lambda pair: pair.path)


def test_the_names_and_the_seed_decide_and_nothing_else() -> None:
    held = {pair.path for pair in split(captioned(100), 0.2, 3)[1]}
    moved = [Captioned(Path("elsewhere") / pair.path.name, "y") for pair in reversed(captioned(100))]
    assert {pair.path.name for pair in split(moved, 0.2, 3)[1]} == {path.name for path in held}
    assert {pair.path for pair in split(captioned(100), 0.2, 4)[1]} != held
    more = {pair.path for pair in split(captioned(110), 0.2, 3)[1]}
    assert len(held - more) <= 5  # a few new pictures move few of the others


def test_one_picture_alone_cannot_be_split() -> None:
    with pytest.raises(PatinaError, match=r"validation\.split: of 1 picture.*validation\.data_dir"):
        split(captioned(1), 0.5, 3)


class Ear:
    """A step that only hears what it would measure."""

    def __init__(self) -> None:
        self.heard: dict[tuple[str, int], tuple[int, int]] = {}

    def measure(self, batch) -> float:
        assert batch["epoch"] == EPOCH
        for name, place, t in zip(batch["names"], batch["places"], batch["t"].tolist(), strict=True):
            self.heard[name, place] = (t, len(batch["mean"]))
        return float(len(batch["mean"]))


def heard(batch_size: int) -> dict[str, list[tuple[int, int]]]:
    def item(number: int, side: int) -> Item:
        latent = Latent(torch.zeros(4, 8, side), torch.ones(4, 8, side), (64,) * 6)
        return Item(Path(f"{number}.png"), "x", (8 * side, 64), (latent,), 1, Path("set"))

    ear = Ear()
    items = [item(number, (8, 12)[number % 2]) for number in range(9)]
    assert HeldOut(items, ear, None, batch_size, 1000, 3).measure(None) == {"validation/loss": 1.0}  # type: ignore
    assert max(rows for _, rows in ear.heard.values()) == batch_size
    found: dict[str, list[tuple[int, int]]] = {}
    for (name, place), (t, _) in sorted(ear.heard.items()):
        found.setdefault(name, []).append((place, t))
    return found


def test_each_picture_has_a_timestep_in_every_quarter_however_it_is_batched() -> None:
    found = heard(4)
    assert heard(3) == found
    assert len(found) == 9
    assert len({place for shown in found.values() for place, _ in shown}) == 9 * TIMES
    for shown in found.values():
        assert [t * TIMES // 1000 for _, t in shown] == list(range(TIMES))
    assert len({t for shown in found.values() for _, t in shown}) > 30  # all over each quarter


def test_a_timestep_that_is_given_is_the_one_that_is_trained_at() -> None:
    pipe = sd15()
    task = ImageTask(SD15, pipe, ddpm(pipe.scheduler), ("unet",), seed=3)
    latent = torch.zeros(2, 4, 8, 8)
    batch = {"mean": latent, "std": latent, "captions": ["a", "b"], "time_ids": torch.zeros(2, 6), "epoch": EPOCH}
    batch["places"] = [0, 1]
    given, drawn = (task.prepare({**batch, **more}) for more in ({"t": torch.tensor([7, 801])}, {}))
    assert given["t"].tolist() == [7, 801] != drawn["t"].tolist()
    assert torch.equal(given["noise"], drawn["noise"])


@pytest.fixture
def given(tmp_path, monkeypatch):
    """Trains with the words given; the working directory has pictures, others, and a base."""
    pictures(tmp_path / "pictures")
    pictures(tmp_path / "others", count=3)
    save_sd15(tmp_path / "base")
    (tmp_path / "run.yaml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    words = ["scheduler=constant", "dataset.cache_dir=cache"]
    return lambda *more: run(configfile.load(Path("run.yaml"), [*words, *more]))


def measured(folder: str) -> dict[int, float]:
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}


def test_other_pictures_are_measured_and_the_training_does_not_notice(given, capsys) -> None:
    words = ["train_text_encoder=false", "network.dropout=0.3", "save_steps=0"]
    plain = given(*words, "output_dir=out/plain")
    capsys.readouterr()
    beside = given(*words, "output_dir=out/beside", "validation.data_dir=others", "validation.every=4")
    said = capsys.readouterr().out
    assert losses(plain.parent) == losses(beside.parent)
    ours, theirs = load_file(plain), load_file(beside)
    assert all((ours[name.replace("plain", "beside")] == weight).all() for name, weight in theirs.items())
    found = measured("out/beside")
    assert list(found) == [4, 6]  # and at the end
    assert "3 others to measure on" in said
    assert f"step 4: validation loss {found[4]:.4f}" in said
    curves = EventAccumulator("out/beside/logs").Reload()
    assert [(event.step, round(event.value, 4)) for event in curves.Scalars("validation/loss")] == [
        (step, round(loss, 4)) for step, loss in found.items()
    ]


def test_the_same_weights_give_the_same_number(given) -> None:
    words = ["validation.data_dir=others", "validation.every=1", "max_steps=2", "save_steps=0"]
    found = measured(str(given(*words, "learning_rate=1e-30", "weight_decay=0").parent))
    assert found[1] == found[2]


def test_a_split_is_trained_around_and_a_resume_measures_the_same(given, capsys) -> None:
    words = ["validation.split=0.34", "save_steps=2"]
    given(*words, "output_dir=out/once")
    said = capsys.readouterr().out
    assert "2 others to measure on" in said
    assert "pictures  4: " in said
    given(*words, "output_dir=out/twice", "max_steps=3")
    given(*words, "output_dir=out/twice", "resume=auto")
    once, twice = measured("out/once"), measured("out/twice")
    assert list(once) == [2, 4, 6]
    assert len(set(once.values())) == 3
    assert {step: twice[step] for step in (2, 4, 6)} == once
