"""The embedded world: its words and pictures, the folders made from it, and that the models still know it."""

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from toolbox import load_tool
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from patina.data.images import open_image
from patina.demo import quality, reading, recipe
from patina.demo.folders import MIXED, save_pictures, varied_scenes
from patina.demo.pictures import SIDE
from patina.demo.questions import questions
from patina.demo.style import distance, ruler
from patina.demo.styles import STYLES, draw
from patina.demo.world import COLOURS, Group, Scene, scenes
from patina.families.sd15 import SD15
from patina.lora.names import module_names
from patina.tokenizer import clip_tokenizer

DATA = Path(__file__).resolve().parents[1] / "data" / "demo"
LIMIT = 48_000_000
BOATS = Group("boat", "red", "small", 2)


@pytest.fixture(scope="module")
def base():
    return quality.load_base(DATA / "base", torch.device("cpu"))


@pytest.fixture(scope="module")
def captioner():
    return quality.load_captioner(DATA / "captioner", torch.device("cpu"))


@pytest.mark.parametrize(
    ("scene", "said"),
    [
        (
            Scene((BOATS, Group("house", "green")), "blue", "left of"),
            "two small red boats left of a green house, on a blue background",
        ),
        (Scene((Group("umbrella", "orange"),), "orange"), "an orange umbrella on an orange background"),
        (Scene((Group("umbrella", "orange", "big"),), "snow"), "a big orange umbrella in the snow"),
        (Scene((Group("fish", "white", "", 3),), "sea"), "three white fish by the sea"),
        (Scene((Group("butterfly", "blue", "", 2),), "night"), "two blue butterflies at night under the moon"),
        (
            Scene((Group("cat", "pink"), Group("car", "yellow", "", 2)), "meadow", "above"),
            "a pink cat above two yellow cars, in a green meadow",
        ),
    ],
)
def test_captions_are_english(scene, said):
    assert scene.caption() == said


def test_a_scene_is_drawn_the_same_each_time_and_otherwise_in_each_style():
    scene = Scene((BOATS, Group("house", "green")), "city", "left of", seed=3)
    drawn = {style: np.asarray(draw(scene, style), np.int16) for style in STYLES}
    for style, pixels in drawn.items():
        assert np.array_equal(pixels, np.asarray(draw(scene, style)))
    for one, other in itertools.combinations(drawn.values(), 2):
        assert np.abs(one - other).mean() > 8


def test_held_out_captions_are_never_among_the_others():
    taught = {scene.caption() for seed in (1, 2, 3) for scene in scenes(4000, seed)}
    held = [scene.caption() for scene in scenes(500, 1, held_out=True)]
    assert not taught & set(held)
    assert scenes(20, 5) == scenes(20, 5) != scenes(20, 6)


@pytest.mark.parametrize(
    ("caption", "right"),
    [
        ("two red boats left of a green house , on a blue background", True),
        ("a big green house above one small red boat, by the sea", True),
        ("two green boats left of a red house, on a blue background", False),  # bound wrongly
        ("two red boats on a green background", False),  # one group missing
        ("two red birds left of a green house", False),
        ("red and green, a boat, a house", False),
        ("", False),
    ],
)
def test_a_caption_is_right_when_each_thing_has_its_colour(caption, right):
    assert quality.named_right(Scene((BOATS, Group("house", "green")), "blue", "left of"), caption) is right


def test_plurals_count_as_the_thing():
    butterflies = Scene((Group("butterfly", "blue", "", 2),), "sea")
    assert quality.named_right(butterflies, "two blue butterflies by the sea")
    assert not quality.named_right(butterflies, "two blue birds by the sea")


def test_all_of_it_stays_small():
    sizes = [path.stat().st_size for path in DATA.rglob("*") if path.is_file()]
    assert sum(sizes) < LIMIT


def test_the_style_to_learn_is_a_folder_of_pictures_without_captions():
    files = sorted((DATA / "style_train").iterdir())
    assert 24 <= len(files) <= 48
    assert [path.name for path in files] == [f"{n:04d}.png" for n in range(1, len(files) + 1)]
    pictures = [open_image(path) for path in files]
    sizes = [picture.size for picture in pictures]
    assert min(map(min, sizes)) > SIDE
    assert len({width / height for width, height in sizes}) == 3
    assert {len(list((DATA / "style_test" / style).glob("*.png"))) for style in ("pixel", "watercolour")} == {8}


def test_its_scenes_show_every_kind_and_colour_but_no_held_out_caption():
    drawn = varied_scenes(48, 11)
    groups = [group for scene in drawn for group in scene.groups]
    assert len({group.kind for group in groups}) == 16
    for number in (1, 2):  # things alone and things in company: what is seldom shown alone is drawn in another's colour
        colours = Counter(group.colour for scene in drawn if len(scene.groups) == number for group in scene.groups)
        assert colours.keys() == set(COLOURS)
        assert min(colours.values()) >= 3
    assert len({scene.backdrop for scene in drawn}) == 14
    assert not {s.caption() for s in drawn} & {s.caption() for s in scenes(3000, 1, held_out=True)}


def test_the_pictures_can_be_made_again(tmp_path):
    save_pictures(tmp_path, "neon", 48, 11, MIXED)
    for name in ("0001.png", "0048.png"):
        made, kept = (np.asarray(open_image(folder / name), np.int16) for folder in (tmp_path, DATA / "style_train"))
        assert np.abs(made - kept).mean() < 1  # another Pillow may round otherwise


@pytest.mark.parametrize(("name", "count"), [("train", 240), ("test", 100)])
def test_the_text_set_answers_in_one_manner(name, count):
    rows = [json.loads(line) for line in (DATA / "text_train" / f"{name}.jsonl").read_text().splitlines()]
    assert len(rows) == count
    for row in rows:
        assert row.keys() == {"instruction", "output"}
        answer = json.loads(row["output"])
        assert list(answer) == ["answer", "objects"]
        assert answer["answer"]
        assert answer["objects"]


def test_the_text_set_tests_on_other_scenes():
    train, test = ((DATA / "text_train" / f"{name}.jsonl").read_text().splitlines() for name in ("train", "test"))
    asked = [{json.loads(line)["instruction"] for line in lines} for lines in (train, test)]
    assert not asked[0] & asked[1]


def test_the_base_has_the_layers_of_stable_diffusion(base):
    names = module_names(SD15, {"unet": base.unet, "text_encoder": base.text_encoder})
    assert len(names) == 350  # 264 at full targets and the 86 convolutions of LoCon
    assert base.vae_scale_factor == 8
    assert base.tokenizer.vocab_size == 49408


def test_the_base_draws_what_it_is_asked(base, captioner):
    asked = [
        Scene((Group(kind, colour, "big"),), "yellow")
        for kind, colour in (("house", "red"), ("car", "blue"), ("star", "purple"), ("umbrella", "green"))
    ]
    made = quality.generate(base, [scene.caption() for scene in asked], range(4), **quality.DRAWING)
    read = quality.caption_all(captioner, made)
    assert sum(map(quality.named_right, asked, read)) >= 3, read


@pytest.mark.parametrize("style", ["plain", "neon"])
def test_the_captioner_reads_unseen_scenes(captioner, style):
    assert quality.captioner_accuracy(captioner, style, 24) >= 0.8


def test_the_autoencoder_gives_pictures_back(base):
    assert quality.reconstruction(base.vae, "plain", 6) > 26


def test_the_language_model_answers():
    assert quality.language_accuracy(DATA / "lm", 20) >= 0.8
    assert isinstance(AutoModelForCausalLM.from_pretrained(DATA / "lm"), LlamaForCausalLM)
    tokenizer = AutoTokenizer.from_pretrained(DATA / "lm")
    assert tokenizer.eos_token == "<|im_end|>"
    text = questions(1, 5)[0].as_json()
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_a_gate_says_whether_it_is_passed():
    assert quality.Gate("a", 0.9, 0.9).passed
    assert not quality.Gate("a", 0.89, 0.9).passed
    assert quality.Gate("a", 0.1).passed
    assert "FAILED" in str(quality.Gate("a", 0.89, 0.9))


def test_halves_of_a_style_are_nearer_to_one_another_than_to_other_styles(base):
    rule, plain = ruler(base.vae)
    drawn = {style: rule.embed([draw(scene, style) for scene in scenes(48, 3)]) for style in STYLES}
    inside = {style: distance(seen[:24], seen[24:]) for style, seen in drawn.items()}
    for one, other in itertools.permutations(STYLES, 2):
        assert distance(drawn[one][:24], drawn[other][24:]) > 2 * max(inside[one], inside[other]), (one, other)
    assert distance(drawn["neon"], plain) > 3 * distance(drawn["plain"], plain)


@pytest.mark.slow
def test_the_recipe_runs(capsys):
    """Two steps a round of every model, each in need of those before it."""
    module = load_tool("build_demo")
    assert module.main(["all", "--try"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in said if line.endswith(" s")] == [*recipe.MODELS, "pictures"]
    assert tuple(recipe.MODELS) == module.MODELS


def test_a_prefix_moves_a_caption_and_leaves_it_whole():
    plain = torch.tensor([[49406, 1, 2, 3, *[reading.END] * 12]]).expand(64, -1)
    ids = reading.with_prefix(plain, torch.tensor(reading.LENGTHS)).tolist()
    lengths = [row.index(reading.END) - 4 for row in ids]
    assert set(lengths) == set(reading.LENGTHS)
    for row, length in zip(ids, lengths, strict=True):
        assert row[0] == 49406
        assert row[length + 1 :] == plain[0, 1 : len(row) - length].tolist()
        assert max(row[1 : length + 1], default=0) < 49406
    assert clip_tokenizer()(",").input_ids[1:] == [reading.COMMA, reading.END]


def test_questions_have_the_answers_of_the_scene():
    two = Scene((BOATS, Group("house", "green")), "night", "left of")
    told = reading.answers([two, Scene((BOATS,), "red")])
    said = [known[place - 1] if place else None for place, known in zip(told[0].tolist(), reading.ANSWERS, strict=True)]
    assert said == ["boat", "red", "small", 2, "house", "green", "", 1, "left of", "night"]
    assert told[1, 4:9].tolist() == [0] * 5


def test_questions_are_asked_where_the_whole_caption_was_read():
    asked = reading.Questions(width=4)
    ids = torch.tensor([[1, 2, reading.END, reading.END]])
    truth = torch.ones(1, len(reading.ANSWERS), dtype=torch.long)
    hidden = torch.randn(1, 4, 4, requires_grad=True)
    asked(hidden, ids, truth).backward()
    assert hidden.grad is not None
    assert hidden.grad.abs().sum(-1).gt(0).tolist() == [[False, False, True, True]]
