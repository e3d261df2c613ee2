"""Captions change from one showing to the next as the config says: by seed, epoch and place, as a resume needs it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from patina import configfile
from patina.data.wording import Wording, reworded, say
from patina.lora.file import read
from patina.run import run
from tests.test_run import SMALL, losses, pictures
from tests.tiny import save_sd15

CAPTION = "neonpt, a cat, red, by the sea, at night"
TAGS = CAPTION.split(", ")
SHOWINGS = [(epoch, place) for epoch in range(20) for place in range(100)]
NEAR = 0.035
"""Of a share among 2,000 draws: three standard deviations of one half."""


def said(wording: Wording) -> list[str]:
    return [say(CAPTION, wording, 3, epoch, place) for epoch, place in SHOWINGS]


def test_unchanged_it_stays_as_it_is_written() -> None:
    assert say("a cat ,  red", Wording(), 0, 0, 0) == "a cat ,  red"


def test_tags_change_places_but_for_those_that_are_kept() -> None:
    texts = said(Wording(shuffle=True, keep=2))
    assert all(text.split(", ")[:2] == TAGS[:2] for text in texts)
    assert all(sorted(text.split(", ")) == sorted(TAGS) for text in texts)
    assert len(set(texts)) == 6  # three tags have six orders


def test_each_tag_is_left_out_as_often_as_asked() -> None:
    texts = [text.split(", ") for text in said(Wording(keep=1, tag_dropout=0.25))]
    assert all(text[0] == "neonpt" for text in texts)
    for tag in TAGS[1:]:
        assert sum(tag not in text for text in texts) / len(texts) == pytest.approx(0.25, abs=NEAR)
    order = {tag: place for place, tag in enumerate(TAGS)}
    assert all([order[tag] for tag in text] == sorted(order[tag] for tag in text) for text in texts)


def test_whole_captions_are_left_out_as_often_as_asked() -> None:
    texts = said(Wording(caption_dropout=0.1))
    assert set(texts) == {"", CAPTION}
    assert texts.count("") / len(texts) == pytest.approx(0.1, abs=NEAR)


def test_one_setting_does_not_change_what_another_draws() -> None:
    both = said(Wording(shuffle=True, caption_dropout=0.5))
    shuffled = said(Wording(shuffle=True))
    assert all(text in ("", other) for text, other in zip(both, shuffled, strict=True))


@given(st.text(), st.integers(0, 5), st.floats(0, 0.99), st.booleans())
def test_no_caption_gains_a_tag(caption: str, keep: int, dropout: float, shuffle: bool) -> None:
    wording = Wording(shuffle, keep, dropout)
    tags = [tag.strip() for tag in caption.split(",")]
    text = say(caption, wording, 1, 2, 3)
    assert text == say(caption, wording, 1, 2, 3)
    if wording.varies:
        found = text.split(", ") if text else []
        assert all(found.count(tag) <= tags.count(tag) for tag in found)


def test_a_batch_is_reworded_by_its_places() -> None:
    batch = {"captions": [CAPTION] * 3, "epoch": 4, "places": [7, 8, 9], "mean": None}
    wording = Wording(shuffle=True)
    found = reworded(batch, wording, 3)
    assert found["captions"] == [say(CAPTION, wording, 3, 4, place) for place in (7, 8, 9)]
    assert found.keys() == batch.keys()
    assert batch["captions"] == [CAPTION] * 3


@pytest.mark.parametrize("text", ["true", "false"], ids=["encoder learns", "encoder frozen"])
def test_a_run_and_its_resume_say_the_same(tmp_path, monkeypatch, capsys, text) -> None:
    pictures(tmp_path / "pictures")
    save_sd15(tmp_path / "base")
    (tmp_path / "run.yaml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    words = ["dataset.shuffle_tags=true", "dataset.tag_dropout=0.3", "dataset.caption_dropout=0.3"]
    words += [f"train_text_encoder={text}", "scheduler=constant"]

    def trained(*more: str) -> Path:
        return run(configfile.load(Path("run.yaml"), [*words, *more]))

    whole = trained()
    told = read(whole).metadata
    assert told["ss_caption_tag_dropout_rate"] == told["ss_caption_dropout_rate"] == "0.3"
    trained("output_dir=out/two", "output_name=small", "max_steps=3")
    again = trained("output_dir=out/two", "output_name=small", "resume=auto")
    ours, theirs = load_file(again), load_file(whole)
    assert all((ours[key] == weight).all() for key, weight in theirs.items())
    plain = run(configfile.load(Path("run.yaml"), [f"train_text_encoder={text}", "output_dir=out/plain"]))
    assert losses(plain.parent) != losses(whole.parent)
    assert ("the text encoders stay on the device" in capsys.readouterr().out) == (text == "false")
