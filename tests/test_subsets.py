"""Several folders of pictures in one run, each with rules of its own: how they are written, and what comes of them."""

import json
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from patina import configfile
from patina.config import Config
from patina.configfile import ConfigError
from patina.errors import PatinaError
from patina.lora.file import read
from patina.pictures import find
from patina.run import run
from tests.test_run import SMALL, pictures
from tests.tiny import save_sd15

ALONE = SMALL.replace("train_data_dir: pictures\nmetadata_path: pictures/metadata.csv\n", "")
TWO = """\
dataset:
  repeats: 2
  flip: true
  tag_dropout: 0.1
  subsets:
    - dir: faces
      repeats: 3
      weight: 0.5
      trigger_word: facept
      flip: false
      shuffle_tags: true
    - places
"""


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Read a config of this text, from the folder that it lies in."""
    monkeypatch.chdir(tmp_path)

    def written(text: str, *words: str) -> Config:
        Path("run.yaml").write_text(text)
        return configfile.load(Path("run.yaml"), words)

    return written


def refused(written, text: str, *words: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        written(text, *words)
    return str(caught.value).splitlines()


def shown(config: Config) -> list[tuple[str, str | None, float, int, bool, float, bool]]:
    """Of each folder what TWO has for it."""
    sets = [(one.folder, one.trigger, one.weight, one.rules) for one in config.picture_sets]
    return [(str(f), t, w, r.repeats, r.flip, r.tag_dropout, r.shuffle_tags) for f, t, w, r in sets]


def test_what_a_subset_leaves_out_is_as_the_run_has_it(written) -> None:
    own = [("faces", "facept", 0.5, 3, False, 0.1, True), ("places", "inkpt", 1.0, 2, True, 0.1, False)]
    assert shown(written(ALONE + TWO)) == own
    assert shown(written(SMALL + TWO)) == [("pictures", "inkpt", 1.0, 2, True, 0.1, False), *own]
    assert written(SMALL + TWO).triggers == ("inkpt", "facept")


def test_a_list_may_hold_other_tools_words(written) -> None:
    theirs = "dataset: {subsets: [{image_dir: faces, num_repeats: 3, flip_aug: true, keep_tokens: 2, crop: center}]}\n"
    (one,) = written(ALONE + theirs).picture_sets
    assert (one.folder, one.rules.repeats, one.rules.flip, one.rules.keep_tags) == (Path("faces"), 3, True, 2)


def test_the_command_line_changes_one_adds_one_or_gives_them_all_anew(written) -> None:
    words = ("dataset.subsets[0].repeats=7", "dataset.subsets[2].dir=more")
    assert [row[:4:3] for row in shown(written(ALONE + TWO, *words))] == [("faces", 7), ("places", 2), ("more", 2)]
    assert [row[0] for row in shown(written(ALONE + TWO, "dataset.subsets=[other]"))] == ["other"]
    given = "dataset.subsets=[{dir: other, weight: 2}]"
    assert shown(written(ALONE + TWO, given)) == [("other", "inkpt", 2.0, 2, True, 0.1, False)]


def test_a_dumped_config_loads_back_equal(written) -> None:
    config = written(SMALL + TWO)
    assert written(configfile.dump(config)) == config


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ("[{dir: a, repeat: 2}]", "[0].repeat: unknown key; did you mean dataset.subsets[0].repeats?"),
        ("[a, {dir: b, repeats: 0}]", "[1].repeats: 0 is too small, it must be at least 1; write e.g."),
        ("[a, {dir: b, repeats: many}]", "[1].repeats: 'many' is not a whole number; write e.g."),
        ("[a, {repeats: 2}]", "[1].dir: is missing; write e.g. dataset.subsets[1].dir: data/portraits"),
        ("[a, {dir: b, crop: left}]", "[1].crop: 'left' is not one of: centre, random; write e.g."),
        ("[a, {}]", "[1]: holds no keys; write its dir, or take it out"),
        ("[[a]]", "[0]: holds no keys; write its dir, or take it out"),
        ("[{dir: a, dir: b}]", "[0].dir: is given twice, first on line"),
        ("[{dir: a, image_dir: b}]", "[0].image_dir: says b, but dataset.subsets[0].dir on line"),
        ("{dir: a}", ": is a group of keys; write e.g. dataset.subsets: [./data/portraits, ./data/places]"),
        ("a", ": 'a' is not a list; write e.g. dataset.subsets: [a]"),
    ],
)
def test_what_is_wrong_with_one_is_said_with_its_line(written, items, said) -> None:
    (found,) = refused(written, f"{ALONE}dataset:\n  subsets: {items}\n")
    assert found.startswith(f"run.yaml:{len(ALONE.splitlines()) + 2}: dataset.subsets{said}")


def test_what_does_not_fit_the_others_is_said(written) -> None:
    (said,) = refused(written, ALONE + TWO, "dataset.subsets[5].repeats=2")
    gap = "there is no dataset.subsets[2] before it; they are counted from 0"
    assert said == f"command line: dataset.subsets[5].repeats: {gap}"
    (said,) = refused(written, f"metadata_path: a.csv\n{ALONE}{TWO}")
    assert "metadata_path: has the captions of train_data_dir, which is not given; write it in the subset" in said
    (said,) = refused(written, ALONE + TWO, "dataset.reg_dir=faces")
    assert "dataset.reg_dir: is trained on itself" in said
    (said,) = refused(written, ALONE.replace("out/small", "places/small") + TWO)
    assert "output_dir: lies in dataset.subsets[1].dir, where previews would become training pictures" in said
    (said,) = refused(written, f"{ALONE}dataset.subsets: []\n")
    place = f"run.yaml:{len(ALONE.splitlines()) + 1}"
    assert said == f"{place}: train_data_dir: is missing; write e.g. train_data_dir: data/style_train"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Six pictures with captions of tags, and two of places with nothing but the names of their folders."""
    home = tmp_path_factory.mktemp("home")
    pictures(home / "faces")
    save_sd15(home / "base")
    (home / "places/4_a harbour").mkdir(parents=True)
    for at in range(2):
        Image.linear_gradient("L").rotate(90 * at).resize((64, 64)).save(home / f"places/4_a harbour/{at}.png")
    text = f"{ALONE}lora_target: [to_q]\ntrain_text_encoder: false\nscheduler: constant\nmetadata: full\n{TWO}"
    (home / "run.yaml").write_text(text.replace("dataset:\n", "dataset:\n  cache_dir: cache\n"))
    return home


@pytest.fixture
def trained(home, monkeypatch):
    monkeypatch.chdir(home)
    return lambda *words: run(configfile.load(Path("run.yaml"), words))


def test_each_picture_follows_its_own_folder(home, monkeypatch, capsys) -> None:
    monkeypatch.chdir(home)
    found = find(configfile.load(Path("run.yaml"), ["validation.split=0.1"]))
    said = capsys.readouterr().out
    assert (
        "subset    faces: 6 pictures, 3 times an epoch, trigger word facept, each counts 0.5 times in the loss" in said
    )
    assert "subset    places: 2 pictures, 2 times an epoch, trigger word inkpt\n" in said
    rows = {(pair.path.parent.name, pair.repeats, pair.weight, pair.variety.flip) for pair in found.trained}
    assert rows <= {("faces", 3, 0.5, False), ("4_a harbour", 8, 1.0, True)}
    assert {pair.caption.split(",")[0] for pair in found.trained} == {"facept", "inkpt"}
    assert {(pair.wording.shuffle, pair.wording.trigger) for pair in found.trained} == {
        (True, "facept"),
        (False, "inkpt"),
    }
    (unseen,) = found.unseen
    assert (unseen.repeats, unseen.weight, unseen.variety.flip, unseen.wording.varies) == (1, 1.0, False, False)


def test_a_run_goes_on_as_one_that_was_not_stopped_and_says_what_it_had(trained, home, capsys) -> None:
    whole = trained()
    out = capsys.readouterr().out
    assert "pictures  8, shown 34 times an epoch" in out
    assert f"<lora:{whole.stem}:1> facept, inkpt" in out
    header = read(whole).metadata
    folders = {str(home / "faces"): [3, 6], str(home / "places/4_a harbour"): [8, 2]}
    assert {key: list(row.values()) for key, row in json.loads(header["ss_dataset_dirs"]).items()} == folders
    tags = json.loads(header["ss_tag_frequency"])
    assert (tags["3_facept"]["facept"], tags["8_inkpt"]) == (6, {"inkpt": 2, "a harbour": 2})
    assert (header["ss_shuffle_caption"], header["ss_flip_aug"], header["modelspec.trigger_phrase"]) == (
        "True",
        "True",
        "facept, inkpt",
    )
    two = ("output_dir=out/two", "output_name=small")
    trained(*two, "max_steps=3")
    ours, theirs = load_file(trained(*two, "resume=auto")), load_file(whole)
    assert all((ours[key] == weight).all() for key, weight in theirs.items())


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("dataset.subsets[0].repeats=4", "dataset.subsets[0].repeats was 3 and is 4"),
        ("dataset.subsets[1].weight=2", "dataset.subsets[1].weight was 1.0 and is 2.0"),
        ("dataset.subsets[1].caption_dropout=0.1", "dataset.subsets[1].caption_dropout was empty and is 0.1"),
        ("dataset.subsets=[faces]", "dataset.subsets was 2 and is 1"),
    ],
)
def test_another_subset_is_another_training(trained, home, word, said) -> None:
    if not (home / "out/three").exists():
        trained("output_dir=out/three", "max_steps=1", "save_steps=1")
    with pytest.raises(PatinaError, match="is of another training") as caught:
        trained("output_dir=out/three", "max_steps=2", "resume=auto", word)
    assert said in str(caught.value)
