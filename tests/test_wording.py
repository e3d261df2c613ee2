"""Captions change from one showing to the next as the config says: by seed, epoch and place, as a resume needs it."""

import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from patina import configfile
from patina.data.dataset import Item, Latent, batch_of
from patina.data.wording import AS_WRITTEN, MARK, SEPARATOR, Wording, notes, plain, possible, say, told
from patina.lora.file import read
from patina.run import run
from tests.test_run import SMALL, losses, pictures
from tests.tiny import save_sd15

CAPTION = "neonpt, a cat, red, by the sea, at night"
TAGS = CAPTION.split(", ")
SHOWINGS = [(epoch, place) for epoch in range(20) for place in range(100)]
NEAR = 0.035
"""Of a share among 2,000 draws: three standard deviations of one half."""
ONE_LINE = st.text(st.characters(exclude_characters="\n"))


def said(wording: Wording, caption: str = CAPTION) -> list[str]:
    return [say(caption, wording, 3, epoch, place) for epoch, place in SHOWINGS]


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
    wild = said(Wording(shuffle=True, wildcards=True), CAPTION.replace("red", "{red|green|blue}"))
    coloured = [re.sub("green|blue", "red", text) for text in wild]
    assert coloured == shuffled


@given(ONE_LINE, st.integers(0, 5), st.floats(0, 0.99), st.booleans())
def test_no_caption_gains_a_tag(caption: str, keep: int, dropout: float, shuffle: bool) -> None:
    wording = Wording(shuffle, keep, dropout)
    tags = [tag.strip() for tag in caption.split(",")]
    text = say(caption, wording, 1, 2, 3)
    assert text == say(caption, wording, 1, 2, 3)
    if wording.varies:
        found = text.split(", ") if text else []
        assert all(found.count(tag) <= tags.count(tag) for tag in found)


def test_a_separator_keeps_what_stands_before_it_and_after_a_second_one() -> None:
    texts = said(Wording(shuffle=True, keep=3, tag_dropout=0.5), "a cat, red ||| sea, sky ||| night")
    assert set(texts) == {
        *(f"a cat, red, {middle}, night" for middle in ("sea, sky", "sky, sea", "sea", "sky")),
        "a cat, red, night",
    }
    assert set(said(Wording(), "a cat ||| red, sea")) == {"a cat, red, sea"}


def test_a_trigger_word_in_front_is_kept_beside_the_tags_that_are() -> None:
    texts = said(Wording(shuffle=True, keep=1, trigger="neonpt"))
    assert all(text.startswith("neonpt, a cat, ") for text in texts)
    assert len(set(texts)) == 6
    two = Wording(shuffle=True, trigger="neonpt, glow")
    assert all(text.startswith("neonpt, glow, ") for text in said(two, told("a, b, c", "first", two.trigger)))


def test_a_caption_may_say_where_the_trigger_word_goes() -> None:
    wording = Wording(shuffle=True, tag_dropout=0.5, trigger="neonpt")
    caption = told(f"a cat, a painting in {MARK} style, red", "first", "neonpt")
    texts = said(wording, caption)
    assert all(text.count("neonpt") == 1 and "a painting in neonpt style" in text.split(", ") for text in texts)
    assert not all(text.startswith("a cat") for text in texts)
    assert plain(caption, wording) == "a cat, a painting in neonpt style, red"
    assert plain(f"a {MARK}", Wording()) == f"a {MARK}"


def test_wildcards_are_drawn_alike_often_and_escapes_are_braces() -> None:
    texts = said(Wording(wildcards=True), "a {red|green|dark blue} cat, {{x|y}}")
    for colour in ("red", "green", "dark blue"):
        assert texts.count(f"a {colour} cat, {{x|y}}") / len(texts) == pytest.approx(1 / 3, abs=NEAR)
    assert set(said(Wording(), "a {red|green} cat")) == {"a {red|green} cat"}
    assert plain("a {red|green} {cat|dog}", Wording(wildcards=True)) == "a red cat"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("first", ["x, a cat, red"]),
        ("random", ["x, a cat, red", "x, a red cat", "x, cat"]),
        ("joined", ["x, a cat, red, a red cat, cat"]),
    ],
)
def test_of_several_lines_those_are_said_that_are_asked_for(lines, expected) -> None:
    caption = told("\n a cat, red \r\n\na red cat\ncat\n", lines, "x")
    assert possible(caption, Wording()) == expected
    texts = said(Wording(), caption)
    assert set(texts) == set(expected)
    assert all(texts.count(text) / len(texts) == pytest.approx(1 / len(expected), abs=NEAR) for text in expected)
    assert plain(caption, Wording()) == expected[0]


def test_whole_epochs_are_left_out() -> None:
    texts = said(Wording(dropout_every=4))
    for epoch in range(20):
        shown = texts[100 * epoch : 100 * (epoch + 1)]
        assert set(shown) == ({""} if epoch % 4 == 3 else {CAPTION})


def test_a_user_is_told_of_lines_that_are_not_read_and_of_a_word_that_is_missing() -> None:
    texts = ["a\nb", "a", f"{MARK}, a", "a\n\n"]
    (lines, mark) = notes(texts, "first", None)
    assert lines.startswith("1 of 4 captions have several lines")
    assert mark.startswith(f"1 of 4 captions hold {MARK}")
    assert not notes(texts, "random", "x")


@given(st.text(st.sampled_from("ab,|{}[]\n \r") | st.characters()), st.sampled_from(["first", "random", "joined"]))
def test_what_is_encoded_beforehand_is_all_that_is_said(text: str, lines: str) -> None:
    wording = Wording(keep=2, caption_dropout=0.3, dropout_every=5, trigger="ab")
    caption = told(text, lines, wording.trigger)
    assert not wording.varies
    texts = {say(caption, wording, 7, epoch, place) for epoch in range(6) for place in range(6)}
    assert texts <= {"", *possible(caption, wording)}
    assert plain(caption, wording) in possible(caption, wording)


@given(ONE_LINE, st.booleans(), st.integers(0, 3))
def test_a_separator_is_never_said(text: str, shuffle: bool, number: int) -> None:
    caption = f" {SEPARATOR} ".join([text.replace("|", ""), "b, c", "d"][:number])
    assert SEPARATOR not in say(caption, Wording(shuffle=shuffle), 1, 2, 3)


@pytest.mark.parametrize(
    "wording", [Wording(shuffle=True), Wording(tag_dropout=0.3), Wording(caption_dropout=0.5), Wording(wildcards=True)]
)
def test_epochs_and_places_are_worded_anew_and_each_the_same_again(wording) -> None:
    def epoch(number: int, seed: int = 3) -> list[str]:
        return [say(f"{CAPTION}, {{old|new}}", wording, seed, number, place) for place in range(30)]

    assert epoch(0) == epoch(0)
    assert epoch(0) != epoch(1) != epoch(2)
    assert epoch(0) != epoch(0, seed=4)
    assert len(set(epoch(0))) > 1


def test_each_picture_of_a_batch_is_worded_as_its_own_rules_and_place_have_it() -> None:
    rules = [Wording(shuffle=True), Wording(tag_dropout=0.5), AS_WRITTEN]
    latent = Latent(torch.zeros(4, 8, 8), torch.ones(4, 8, 8), (64, 64, 0, 0, 64, 64))
    items = [Item(Path("a.png"), CAPTION, (64, 64), (latent,), 1, Path(), wording=rule) for rule in rules]
    found = batch_of(items, 3, 4, 7)["captions"]
    assert found == [say(CAPTION, rule, 3, 4, place) for rule, place in zip(rules, (7, 8, 9), strict=True)]
    assert len({*found, CAPTION}) == 3


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Run SMALL with these words, on six pictures of three lines each."""
    folder = tmp_path / "pictures"
    pictures(folder)
    (folder / "metadata.csv").unlink()
    for number in range(6):
        says = f"a {{red|green}} cat, number {number} ||| sea, sky, sand\nnumber {number}, in [trigger]\n{{}}, x, y"
        (folder / f"{number:02}.txt").write_text(says)
    save_sd15(tmp_path / "base")
    (tmp_path / "run.yaml").write_text(SMALL.replace("metadata_path: pictures/metadata.csv\n", ""))
    monkeypatch.chdir(tmp_path)

    def trained(*words: str) -> Path:
        return run(configfile.load(Path("run.yaml"), ["scheduler=constant", *words]))

    return trained


EVERYTHING = [
    *("dataset.shuffle_tags=true", "dataset.tag_dropout=0.3", "dataset.caption_dropout=0.3", "dataset.keep_tags=1"),
    *("dataset.caption_lines=random", "dataset.wildcards=true", "dataset.caption_dropout_every_epochs=3"),
]


@pytest.mark.parametrize("text", ["true", "false"], ids=["encoder learns", "encoder frozen"])
def test_a_run_and_its_resume_say_the_same(trained, capsys, text) -> None:
    words = [*EVERYTHING, f"train_text_encoder={text}"]
    whole = trained(*words)
    header = read(whole).metadata
    assert header["ss_caption_tag_dropout_rate"] == header["ss_caption_dropout_rate"] == "0.3"
    assert (header["ss_caption_dropout_every_n_epochs"], header["ss_keep_tokens"]) == ("3", "1")
    assert header["ss_shuffle_caption"] == "True"
    tags = json.loads(header["ss_tag_frequency"])["1_inkpt"]
    assert tags == {"inkpt": 6, "a red cat": 6, "sea": 6, "sky": 6, "sand": 6} | {f"number {n}": 1 for n in range(6)}
    trained(*words, "output_dir=out/two", "output_name=small", "max_steps=3")
    again = trained(*words, "output_dir=out/two", "output_name=small", "resume=auto")
    ours, theirs = load_file(again), load_file(whole)
    assert all((ours[key] == weight).all() for key, weight in theirs.items())
    plainly = trained(f"train_text_encoder={text}", "output_dir=out/plain", "max_steps=1")
    assert losses(plainly.parent)[0] != losses(whole.parent)[0]
    assert ("the text encoders stay on the device" in capsys.readouterr().out) == (text == "false")


def test_lines_are_encoded_beforehand_and_previews_draw_them_plainly(trained, capsys) -> None:
    words = ["dataset.caption_lines=random", "dataset.caption_dropout=0.3", "train_text_encoder=false"]
    path = trained(*words, "preview.every=6", "preview.steps=1", "save_steps=0")
    assert "stay on the device" not in capsys.readouterr().out
    entries = [file for file in (path.parent / "cache").rglob("*.safetensors")]
    assert len(entries) == 6 + 2 * 6 + 1 + 1  # pictures, lines of their own, the line that all share, and nothing
