"""A picture's variants are what they say, are cached beside it, and are drawn by seed, epoch and place alone."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from test_run import SMALL, losses, pictures

from patina import configfile
from patina.data import variants
from patina.data.cache import View, encode_all
from patina.data.captions import Captioned
from patina.data.dataset import Item, epochs, load_items
from patina.data.variants import PLAIN, Variant, Variety
from patina.lora.file import read
from patina.run import run

SIZES = ((48, 80), (64, 64), (80, 48))
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
    how = {"resolution": 64, "bucket_step": 8, "buckets": True, "repeats": 1}
    captioned = [Captioned(path, path.stem) for path in paths]
    return load_items(captioned, vae, **how, cache_dir=folder, workers=workers, variety=variety)


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
    how = variants.fit(image.size, SIZES)
    assert np.array_equal(variants.cut(image, how, MIRRORED), variants.cut(image, how, PLAIN)[:, ::-1])


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


def test_a_run_with_variants_goes_on_as_one_that_was_not_stopped(tmp_path, monkeypatch) -> None:
    pictures(tmp_path / "pictures")
    tiny.save_sd15(tmp_path / "base")
    (tmp_path / "run.yaml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)

    def trained(*words: str) -> Path:
        return run(configfile.load(Path("run.yaml"), ["scheduler=constant", "dataset.cache_dir=cache", *words]))

    whole = trained("dataset.flip=true")
    trained("dataset.flip=true", "output_dir=out/two", "output_name=small", "max_steps=3")
    again = trained("dataset.flip=true", "output_dir=out/two", "output_name=small", "resume=auto")
    ours, theirs = load_file(again), load_file(whole)
    assert all((ours[key] == weight).all() for key, weight in theirs.items())
    assert read(whole).metadata["ss_flip_aug"] == "True"
    plain = trained("output_dir=out/plain")
    assert losses(plain.parent) != losses(whole.parent)
