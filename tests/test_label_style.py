"""Captions lose their style and keep their content, hold the trigger once, and fit what Stable Diffusion reads."""

import re

import pytest

from patina.caption import style
from patina.caption.polish import LIMIT, PLAIN, Polish, finish
from patina.caption.style import COMMON, KNOWN, RANKED, lexicon, prune, set_style, without_boilerplate
from patina.errors import PatinaError
from patina.tokenizer import count_tokens


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a painting of a cat", "a cat"),
        ("an old oil painting of two ships at sea", "two ships at sea"),
        ("a black and white photograph of a street", "a street"),
        ("a cat in the style of van gogh", "a cat"),
        ("a cat painted in a loose impressionist style, on a chair", "a cat, on a chair"),
        ("a castle, digital art, trending on artstation, by greg rutkowski", "a castle"),
        ("a girl, anime style, holding a cup", "a girl, holding a cup"),
        ("an anime-style girl holding a cup", "a girl holding a cup"),
        ("masterpiece, 1girl, best quality, long hair", "1girl, long hair"),
        ("a comic book artwork by jack kirby", ""),
        # Content that only looks like style:
        ("a woman stands in front of a painting", "a woman stands in front of a painting"),
        ("a house by the sea", "a house by the sea"),
        ("a cat, by a lake", "a cat, by a lake"),
        ("a dark forest with neon lights", "a dark forest with neon lights"),
        ("a man drawing in a sketchbook", "a man drawing in a sketchbook"),
        ("a man in the garden of a hotel", "a man in the garden of a hotel"),
    ],
)
def test_words_of_style_go_and_content_stays(caption, expected):
    text, removed = prune(caption, {})
    assert text == expected
    assert bool(removed) == (text != caption)
    assert all(why == KNOWN for _, why in removed)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("The image shows a cat on a mat", "a cat on a mat"),
        ("this is a picture of a cat", "this is a picture of a cat"),
        ("a picture of a cat", "a cat"),
        ("In this image, we can see a cat", "a cat"),
        ("the digital image features a cat", "a cat"),
        ("There is a cat on the bed", "a cat on the bed"),
        ("arafed woman in a red dress", "woman in a red dress"),
        ("an image of a picture of a cat", "a cat"),
        ("a pictured wall", "a pictured wall"),
    ],
)
def test_boilerplate_goes(caption, expected):
    assert without_boilerplate(caption) == expected


def test_what_a_set_has_in_common_is_its_style():
    things = ["cat", "dog", "owl", "fox", "hen", "cow", "ant", "bee", "elk", "emu"]
    captions = [f"a {thing} with bold outlines, neon lights, on a hill" for thing in things[:9]]
    captions.append("a woman, standing")
    found = set_style(captions, [()] * 10)
    assert found == {"neon lights": COMMON, "on a hill": COMMON, "bold outlines": COMMON, "neon": COMMON}
    assert prune(captions[0], found)[0] == "a cat"
    assert prune("a neonate with neon signs", found)[0] == "a neonate with signs"
    assert set_style(captions[:7], [()] * 7) == {}, "too few to tell"
    assert "on a hill" not in set_style([*captions, "a", "b", "c"], [()] * 13)


def test_styles_that_the_model_ranks_first_go_where_they_are_doubtful():
    captions = [f"a {number} vintage car" for number in range(10)] + ["a moody sky", "a cat"]
    ranked = [("vintage", "photo", "retro")] * 6 + [("moody", "photo", "ink")] * 5 + [()]
    assert set_style(captions, ranked) == {"vintage": COMMON, "retro": RANKED}
    assert set_style(captions[6:] + captions[10:] * 3, ranked[6:] + ranked[6:12]) == {"moody": RANKED, "ink": RANKED}


def test_the_lexicon_is_in_order():
    words = lexicon()
    assert not words.doubtful & (words.styles | words.mediums)
    assert all(phrase == phrase.lower().strip() for phrase in words.rankable())
    assert len(words.rankable()) > 150
    assert style.lexicon() is words


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a cat", "ptna, a cat"),
        ("ptna, a cat", "ptna, a cat"),
        ("a Ptna cat on a ptna", "ptna, a cat"),
        ("ptnas in a row", "ptna, ptnas in a row"),
        ("", "ptna"),
    ],
)
def test_the_trigger_stands_once(caption, expected):
    prompt = finish(caption, Polish("ptna"), {}).prompt
    assert prompt == expected
    assert finish(prompt, Polish("ptna"), {}).prompt == expected
    assert len(re.findall(r"\bptna\b", prompt)) == 1


def test_the_template_places_it():
    assert finish("a cat", Polish("ptna", "{caption}, in the style of {trigger}"), {}).prompt == (
        "a cat, in the style of ptna"
    )
    assert finish("a cat", Polish("", "{caption} - {trigger}"), {}).prompt == "a cat"
    for template in ("{trigger}", "{caption}", "{trigger} {trigger} {caption}"):
        with pytest.raises(PatinaError, match="must stand in it once"):
            Polish("ptna", template)


def test_words_are_replaced_left_out_and_not_repeated():
    polish = Polish(replace=(("kitty", "cat"), ("1girl", "a woman")), blacklist=("solo", "very"))
    text = "1girl, Solo, kitty, cat, very very large hat, kittyhawk, 1girl"
    assert finish(text, polish, {}).prompt == "a woman, cat, large hat, kittyhawk"


def test_a_long_caption_is_cut_at_a_word_so_that_the_whole_fits():
    words = [f"extraordinarily{number}" for number in range(60)]
    done = finish(" ".join(words), Polish("ptna"), {})
    assert done.shortened
    assert count_tokens([done.prompt])[0] <= LIMIT
    kept = done.prompt.removeprefix("ptna, ").split(" ")
    assert kept == words[: len(kept)]
    assert count_tokens([f"{done.prompt} {words[len(kept)]}"])[0] > LIMIT
    assert not finish("a cat", Polish("ptna"), {}).shortened


def test_pruning_can_be_asked_to_say_and_not_to_do():
    for mode, prompt, pruned in (("auto", "a cat", True), ("list", "a painting of a cat", True)):
        done = finish("a painting of a cat", Polish(prune=mode), {})
        assert (done.prompt, bool(done.pruned)) == (prompt, pruned)
    assert finish("a painting of a cat", Polish(prune="off"), {}).pruned == ()


def test_what_is_added_to_leaves_what_was_there():
    done = finish("a cat, a photo, on a mat", Polish("ptna"), {}, before="My own words. ptna, on a mat")
    assert done.prompt == "My own words. ptna, on a mat, a cat"
    assert finish("a cat", PLAIN, {}, before="a cat").prompt == "a cat"
