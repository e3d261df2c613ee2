"""A picture's variants are what they say, are cached beside it, and are drawn by seed, epoch and place alone."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image, ImageOps, ImageStat
from safetensors.torch import load_file
from test_run import SMALL, losses, pictures

from patina import configfile
from patina.data import variants
from patina.data.buckets import Buckets, fit, size_ids
from patina.data.cache import View, encode_all, key_of
from patina.data.captions import Captioned
from patina.data.dataset import Item, epochs, load_items
from patina.data.variants import PLAIN, Variant, Variety, varied
from patina.lora.file import read
from patina.pictures import find
from patina.run import run

SIZES = Buckets(64, 16)
FLIP = Variety(flip=True)
MIRRORED = Variant(mirrored=True)


@pytest.fixture(scope="module")
def vae():
    return tiny.sd15().vae


@pytest.fixture
def picture(tmp_path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (70, 130, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    return tmp_path / "wide.png"


def load(paths: list[Path], vae, folder: Path, variety: Variety, workers: int = 2) -> list[Item]:
    how = {"buckets": Buckets(64, 8)}
    captioned = [Captioned(path, path.stem, variety=variety) for path in paths]
    return load_items(captioned, vae, **how, cache_dir=folder, workers=workers)


def test_the_mirrored_picture_is_encoded_and_not_its_latent_turned(vae, picture, tmp_path) -> None:
    turned = tmp_path / "turned.png"
    ImageOps.mirror(Image.open(picture)).save(turned)
    own, other = encode_all([View(picture, MIRRORED), View(turned)], vae, SIZES, tmp_path / "cache", 2)
    (plain,) = encode_all([View(picture)], vae, SIZES, tmp_path / "cache", 2)
    torch.testing.assert_close(own.mean, other.mean, atol=2e-2, rtol=0)  # pixels are rounded on the other side
    assert (own.mean - plain.mean.flip(-1)).abs().max() > 5 * (own.mean - other.mean).abs().max()
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 3


def test_a_variant_has_its_own_entry_and_leaves_the_plain_one_where_it_was(vae, picture, tmp_path) -> None:
    (plain,) = load([picture], vae, tmp_path / "cache", Variety())
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    (flipped,) = load([picture], vae, tmp_path / "cache", FLIP)
    assert torch.equal(plain.latents[0].mean, flipped.latents[0].mean)
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2
    (again,) = load([picture], vae, tmp_path / "cache", FLIP)
    assert [torch.equal(a.mean, b.mean) for a, b in zip(flipped.latents, again.latents, strict=True)] == [True, True]


def test_pixels_are_those_of_the_cut_turned(picture) -> None:
    image = Image.open(picture)
    how = fit(image.size, SIZES)
    assert np.array_equal(variants.cut(image, how, MIRRORED), variants.cut(image, how, PLAIN)[:, ::-1])


def test_cuts_are_of_one_size_within_the_picture_and_apart_the_middle_first() -> None:
    for size in ((201, 64), (33, 1000), (120, 91)):
        how = fit(size, SIZES)
        kinds = variants.variants(Variety(crop=True, number=9), how)
        boxes = [variants.moved(how, kind.place, kind.place).box for kind in kinds]
        assert boxes[0] == how.box
        assert len(set(boxes)) == 9
        for left, top, right, bottom in boxes:
            assert 0 <= left < right <= size[0]
            assert 0 <= top < bottom <= size[1]
            assert right - left == pytest.approx(how.box[2] - how.box[0])
            assert bottom - top == pytest.approx(how.box[3] - how.box[1])
        ends = min(boxes), max(boxes)
        assert [box[0] + box[1] for box in ends] == pytest.approx([0, 2 * (how.box[0] + how.box[1])])


def test_variants_are_combined_and_not_multiplied_and_a_picture_without_room_has_one_cut() -> None:
    roomy, full = fit((200, 64), SIZES), fit((66, 64), SIZES)
    every = Variety(flip=True, crop=True, colour=0.1, number=4)
    assert len(set(variants.variants(every, roomy))) == 8
    assert {kind.place for kind in variants.variants(every, full)} == {0.5}
    assert len(set(variants.variants(every, full))) == 8
    assert variants.variants(Variety(crop=True, number=4), full) == (PLAIN,)
    assert variants.variants(Variety(flip=True, number=4), roomy) == (PLAIN, MIRRORED)


def test_a_cut_shows_what_it_says_and_tells_sdxl_so() -> None:
    image = Image.new("RGB", (400, 64), "red")
    image.paste("blue", (300, 0, 400, 64))
    how = fit(image.size, SIZES)  # 80x48 of 106.7 x 64: all of the last quarter is blue
    first, last = (variants.cut(image, how, Variant(place=place)) for place in (0.0, 1.0))
    assert (first == (255, 0, 0)).all()
    assert (last[:, 10:] == (0, 0, 255)).all()
    assert np.array_equal(variants.cut(image, how, Variant(True, 1.0)), last[:, ::-1])
    cut_off = 220  # 400 x 64 scaled to a height of 48 is 300 pixels wide
    places = {Variant(place=0.0): 0, Variant(place=1.0): cut_off, Variant(True, 1.0): 0, Variant(True, 0.25): 165}
    told = {kind: variants.ids(image.size, SIZES, kind) for kind in places}
    assert told == {kind: (64, 400, 0, left, 48, 80) for kind, left in places.items()}
    tall = [variants.ids((64, 400), SIZES, Variant(mirrored, 0.25)) for mirrored in (False, True)]
    assert tall == [(400, 64, 55, 0, 80, 48)] * 2
    assert variants.ids((130, 70), SIZES, MIRRORED) == size_ids((130, 70), fit((130, 70), SIZES))


def test_colours_move_as_far_as_asked_and_the_same_way_again() -> None:
    grey = Image.new("RGB", (8, 8), (100, 100, 100))
    found = [variants.recoloured(grey, 0.1, draw).getpixel((0, 0)) for draw in range(1, 200)]
    levels = [ImageStat.Stat(Image.new("RGB", (1, 1), pixel)).mean[0] for pixel in found]
    assert min(levels) < 93 < 107 < max(levels)
    assert min(levels) >= 89
    assert max(levels) <= 111
    red = Image.new("RGB", (8, 8), (200, 40, 40))
    hues = [variants.recoloured(red, 0.1, draw).convert("HSV").getpixel((0, 0))[0] for draw in range(1, 200)]
    turns = [(hue + 128) % 256 - 128 for hue in hues]
    assert -14 <= min(turns) < -10 < 10 < max(turns) <= 14  # 0.1 of half a circle of 256, and rounding
    assert variants.recoloured(red, 0.1, 3).tobytes() == variants.recoloured(red, 0.1, 3).tobytes()
    assert variants.recoloured(red, 0.0, 3) is red


def test_keys_of_what_was_cached_before_stay_and_others_differ_in_all_that_decides() -> None:
    def key(variant: Variant) -> str:
        return key_of(b"x", SIZES, "e", variant)

    assert key(PLAIN) == "a4329f1c46986f4bf4302f29c2741bb91003c457305659515631cae353cf29c6"
    assert key(MIRRORED) == "5fe0be2b3a2340686b1c68df7e380c2f3e01c9846f984bc14d2498f7f1e52713"
    kinds = [PLAIN, MIRRORED, Variant(place=0.25), Variant(True, 0.25), Variant(colour=0.1, draw=1)]
    kinds += [Variant(colour=0.2, draw=1), Variant(colour=0.1, draw=2)]
    assert len({key(kind) for kind in kinds}) == len(kinds)


def test_a_set_of_variants_is_loaded_in_order_and_tells_how_many_have_room(vae, tmp_path) -> None:
    paths = [tmp_path / "wide.png", tmp_path / "square.png"]
    noise = np.random.default_rng(1).integers(0, 256, (64, 200, 3), np.uint8)
    for path, pixels in zip(paths, (noise, noise[:, :64]), strict=True):
        Image.fromarray(pixels).save(path)
    variety = Variety(flip=True, crop=True, number=3)
    items = load(paths, vae, tmp_path / "cache", variety)
    assert [len(item.latents) for item in items] == [6, 2]
    assert [latent.sizes[3] for latent in items[0].latents] == [35, 0, 70, 35, 70, 0]
    views = [View(paths[0], Variant(mirrored, place)) for mirrored in (False, True) for place in (0.5, 0.0, 1.0)]
    alone = encode_all(views, vae, Buckets(64, 8), tmp_path / "other", 1)
    assert all(torch.equal(one.mean, own.mean) for one, own in zip(alone, items[0].latents, strict=True))
    room, made = varied([Captioned(path, "", variety=variety) for path in paths], Buckets(64, 8))
    assert room == "1 of 2 pictures have room for other cuts"
    assert made == f"{sum(len(item.latents) for item in items)} encodings of 2 pictures: 2 to 6 variants each"


def test_what_is_told_of_variants_is_by_the_heads_of_the_files_alone(picture, tmp_path) -> None:
    (tmp_path / "cut.png").write_bytes(picture.read_bytes()[:2000])
    (tmp_path / "none.png").write_bytes(b"")

    def told(variety: Variety, *names: str) -> list[str]:
        return varied([Captioned(tmp_path / name, "", variety=variety) for name in names], SIZES)

    both = ("wide.png", "cut.png", "none.png")  # the encoding will refuse the last two
    assert told(Variety(number=4), *both) == []
    assert told(FLIP, *both) == ["4 encodings of 2 pictures: 2 variants each"]
    assert told(Variety(colour=0.1, number=4), *both) == ["8 encodings of 2 pictures: 4 variants each"]
    assert told(FLIP, "none.png") == []


def test_a_run_says_how_many_encodings_there_will_be_before_anything_is_loaded(tmp_path, monkeypatch, capsys) -> None:
    pictures(tmp_path / "pictures")
    (tmp_path / "run.yaml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    find(configfile.load(Path("run.yaml"), ["dataset.colour=0.1", "dataset.variants=3", "flip_aug=true"]))
    assert "variants: 36 encodings of 6 pictures: 6 variants each" in capsys.readouterr().out.splitlines()


def test_each_showing_draws_a_variant_by_seed_epoch_and_place() -> None:
    drawn = [variants.choose(2, 3, epoch, place) for epoch in range(20) for place in range(100)]
    assert sum(drawn) / len(drawn) == pytest.approx(0.5, abs=0.035)  # three standard deviations
    assert drawn == [variants.choose(2, 3, epoch, place) for epoch in range(20) for place in range(100)]
    assert drawn != [variants.choose(2, 4, epoch, place) for epoch in range(20) for place in range(100)]
    assert variants.choose(1, 3, 0, 0) == 0


def test_a_stream_may_begin_anywhere_and_shows_both(vae, picture, tmp_path) -> None:
    paths = [picture, *(tmp_path / f"{number}.png" for number in range(4))]
    for number, path in enumerate(paths[1:]):
        Image.new("RGB", (64, 64), (40 * number, 99, 0)).save(path)
    items = load(paths, vae, tmp_path / "cache", FLIP, workers=1)
    whole = list(islice(epochs(items, 2, 5, 0), 40))
    for start in (1, 3, 17):
        for one, other in zip(whole[start:], epochs(items, 2, 5, start), strict=False):
            assert torch.equal(one["mean"], other["mean"])
            assert torch.equal(one["time_ids"], other["time_ids"])
    found = [
        next(at for at, latent in enumerate(items[0].latents) if torch.equal(latent.mean, mean))
        for batch in whole
        for name, mean in zip(batch["names"], batch["mean"], strict=True)
        if name == picture.name
    ]
    assert set(found) == {0, 1}
    other = list(islice(epochs(load(paths, vae, tmp_path / "cache", FLIP, workers=7), 2, 5, 0), 40))
    assert all(torch.equal(a["mean"], b["mean"]) for a, b in zip(whole, other, strict=True))


@pytest.mark.parametrize(
    "words",
    [["dataset.flip=true"], ["dataset.flip=true", "dataset.buckets=false", "random_crop=true", "color_aug=true"]],
    ids=["mirrored", "all"],
)
def test_a_run_with_variants_goes_on_as_one_that_was_not_stopped(tmp_path, monkeypatch, words) -> None:
    pictures(tmp_path / "pictures")
    tiny.save_sd15(tmp_path / "base")
    (tmp_path / "run.yaml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)

    def trained(*words: str) -> Path:
        return run(configfile.load(Path("run.yaml"), ["scheduler=constant", "dataset.cache_dir=cache", *words]))

    whole = trained(*words)
    trained(*words, "output_dir=out/two", "output_name=small", "max_steps=3")
    again = trained(*words, "output_dir=out/two", "output_name=small", "resume=auto")
    ours, theirs = load_file(again), load_file(whole)
    assert all((ours[key] == weight).all() for key, weight in theirs.items())
    assert read(whole).metadata["ss_flip_aug"] == "True"
    plain = trained("output_dir=out/plain")
    assert losses(plain.parent) != losses(whole.parent)
