"""Regularisation pictures: an epoch has as many as pictures to train on, in turn, weighing what the config says."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import load_file
from test_run import SMALL, pictures

from patina import configfile
from patina.data.buckets import Size
from patina.data.captions import Captioned
from patina.data.dataset import Item, Latent, batch_shapes, batches_per_epoch, epochs, report
from patina.data.prior import as_prior, turns
from patina.errors import PatinaError
from patina.lora.file import read
from patina.pictures import prompts
from patina.run import run
from tests.toolbox import load_tool

SHAPES: list[Size] = [(48, 80)] * 3 + [(64, 64)] * 7 + [(80, 48)]


@pytest.mark.parametrize("wanted", [4, 11, 25])
def test_an_epoch_goes_on_where_the_last_one_ended(wanted) -> None:
    found = [turns(SHAPES, wanted, 7, epoch) for epoch in range(60)]
    counts = [Counter(SHAPES[at] for at in epoch) for epoch in found]
    assert all(len(epoch) == wanted for epoch in found)
    assert all(count == counts[0] for count in counts)  # or no one could say where a later epoch begins
    for shape, number in Counter(SHAPES).items():
        assert abs(counts[0][shape] - number * wanted / len(SHAPES)) < 1
        shown = [at for epoch in found for at in epoch if SHAPES[at] == shape]
        for first in range(0, len(shown) - number + 1, number):
            assert len(set(shown[first : first + number])) == number
    assert found == [turns(SHAPES, wanted, 7, epoch) for epoch in range(60)]
    assert found != [turns(SHAPES, wanted, 8, epoch) for epoch in range(60)]


def test_without_any_there_is_none() -> None:
    assert turns([], 5, 0, 0) == []


def item(name: str, bucket: Size, *, repeats: int = 1, weight: float = 1.0, prior: bool = False) -> Item:
    latent = Latent(torch.zeros(4, bucket[1] // 8, bucket[0] // 8), torch.ones(4, 1, 1), (0,) * 6)
    return Item(Path(name), name, bucket, (latent,), repeats, Path("set"), weight, prior)


def test_batches_hold_both_with_their_weights_and_may_begin_anywhere() -> None:
    ours = [item(f"ours {at}", (64, 64), repeats=2) for at in range(3)]
    theirs = [item(f"class {at}", size, weight=0.5, prior=True) for at, size in enumerate(SHAPES)]
    items = [*ours, *theirs]
    per_epoch = batches_per_epoch(items, 2)
    assert sum(batch_shapes(items, 2).values()) == per_epoch
    whole = list(islice(epochs(items, 2, 5, 0), 4 * per_epoch))
    for epoch in range(4):
        batches = whole[epoch * per_epoch : (epoch + 1) * per_epoch]
        shown = Counter(name for batch in batches for name in batch["names"])
        assert {batch["epoch"] for batch in batches} == {epoch}
        assert all(shown[one.path.name] == 2 for one in ours)
        assert sum(shown[one.path.name] for one in theirs) == 6
    for batch in whole:
        assert batch["weights"].tolist() == [0.5 if name.startswith("class") else 1.0 for name in batch["names"]]
    assert {one.path.name for one in theirs[:-1]} <= {name for batch in whole for name in batch["names"]}
    for start in (1, per_epoch, 2 * per_epoch + 3):
        later = islice(epochs(items, 2, 5, start), 5)
        expected = whole[start : start + 5]
        assert [batch["names"] for batch in later] == [batch["names"] for batch in expected]


def test_the_report_tells_them_apart() -> None:
    theirs = [item("x", (64, 64), weight=weight, prior=True) for weight in (0.5, 1.0, 0.5)]
    assert report([item("a", (64, 64), repeats=2), *theirs]) == [
        "1, each 2 times an epoch: 1 of 64x64",
        "3 of regularisation, 2 showings an epoch, each counts 0.5 to 1 times in the loss: 3 of 64x64",
    ]
    rare = [*theirs, item("y", (80, 48), prior=True)]
    assert report([item("a", (64, 64)), *rare])[-1].startswith("1 of these never come up, as too few have their shape")


def test_a_picture_keeps_its_weight_and_caption() -> None:
    (pair,) = as_prior([Captioned(Path("a.png"), "a dog", weight=3.0)], ["inkpt"])
    assert (pair.weight, pair.prior, pair.caption) == (3.0, True, "a dog")


@pytest.mark.parametrize("caption", ["a dog\ninkpt, a dog", "a [trigger] dog"])
def test_the_trigger_word_is_refused(caption) -> None:
    with pytest.raises(
        PatinaError, match=r"^reg/a\.png: a regularisation picture's caption has the trigger word; leave"
    ):
        as_prior([Captioned(Path("reg/a.png"), caption)], ["other", "inkpt"])


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Six pictures, three of kohya's folder of a class without captions, and two of a flat folder without any."""
    home = tmp_path_factory.mktemp("home")
    pictures(home / "pictures")
    tiny.save_sd15(home / "base")
    for folder, count in {"reg/2_painting": 3, "bare": 2}.items():
        (home / folder).mkdir(parents=True)
        for at in range(count):
            Image.linear_gradient("L").rotate(90 * at).resize((64, 64)).save(home / folder / f"class{at}.png")
    text = SMALL.replace("max_steps: 6", "epochs: 2").replace("batch_size: 2", "batch_size: 3")
    text += "lora_target: [to_q]\ntrain_text_encoder: false\nscheduler: constant\nmetadata: full\n"
    (home / "run.yaml").write_text(f"{text}dataset: {{cache_dir: cache}}\n")
    return home


@pytest.fixture
def trained(home, monkeypatch):
    monkeypatch.chdir(home)
    return lambda *words: run(configfile.load(Path("run.yaml"), words))


REG = ("dataset.reg_dir=reg", "dataset.reg_weight=0.5")


def test_a_run_goes_on_as_one_that_was_not_stopped_and_says_what_it_did(trained, capsys) -> None:
    whole = trained(*REG)
    out = capsys.readouterr().out
    assert "pictures  6: " in out
    assert "pictures  3 of regularisation, 6 showings an epoch, each counts 0.5 times in the loss: 3 of 64x64" in out
    assert "steps     10 of batch 3: 2.0 epochs" in out  # an epoch has 2 + 6 squares, and 2 each of two other shapes
    header = read(whole).metadata
    assert (header["ss_num_train_images"], header["ss_num_reg_images"]) == ("6", "6")
    assert header["ss_prior_loss_weight"] == "0.5"
    reg = str(Path("reg/2_painting").resolve())
    assert json.loads(header["ss_reg_dataset_dirs"]) == {reg: {"n_repeats": 2, "img_count": 3}}
    assert reg not in header["ss_dataset_dirs"]
    assert "painting" not in header["ss_tag_frequency"]
    two = (*REG, "output_dir=out/two", "output_name=small")
    trained(*two, "max_steps=6")
    ours, theirs = load_file(trained(*two, "resume=auto")), load_file(whole)
    assert all((ours[key] == weight).all() for key, weight in theirs.items())
    with pytest.raises(
        PatinaError, match=r"reg_weight was 0\.5 and is 1\.0; regularisation pictures was 3 and is 0; cap"
    ):
        trained("output_dir=out/two", "resume=auto", "epochs=3")


def test_previews_draw_what_is_trained(home) -> None:
    config = configfile.load(home / "run.yaml", [])
    assert prompts(config, [item("class", (64, 64), prior=True), item("ours", (64, 64))]) == ("ours",)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["dataset.reg_dir=absent", "output_dir=new"],
            "absent: no such folder; give the folder that holds the pictures",
        ),
        (
            ["dataset.reg_dir=bare", "output_dir=new"],
            "bare: no picture has a caption; write them with: .*, or name its folder as 1_NAME",
        ),
        (["dataset.reg_dir=./pictures"], "dataset.reg_dir: is trained on itself; name a folder with other"),
        (["dataset.reg_dir=reg", "output_dir=reg/out"], r"output_dir: lies in dataset\.reg_dir, where previews"),
        (["dataset.reg_weight=0"], r"dataset\.reg_weight: 0 is too small"),
    ],
)
def test_what_cannot_be_is_refused(words, said, trained) -> None:
    with pytest.raises((PatinaError, configfile.ConfigError), match=said):
        trained(*words)


def test_a_config_has_them_checked_too(home, monkeypatch, capsys) -> None:
    monkeypatch.chdir(home)
    Path("checked.yaml").write_text(SMALL + "dataset: {reg_dir: reg}\n")
    load_tool("check_data").main(["checked.yaml"])
    ours, theirs = capsys.readouterr().out.split("reg: 3 pictures")
    assert "pictures: 6 pictures" in ours
    assert "caption" not in theirs.split("\n", 1)[1]  # the folder's name is theirs
