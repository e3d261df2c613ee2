"""The latent cache gives what the autoencoder gives, keeps it, notices every change, and survives damage; the stream
of batches can begin anywhere."""

import os
import random
from hashlib import sha256
from itertools import islice
from pathlib import Path
from threading import Semaphore

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import load_file

from patina.data import cache
from patina.data.buckets import Buckets, fit
from patina.data.captions import Captioned
from patina.data.dataset import batches_per_epoch, bucket_counts, epochs, load_items, report
from patina.data.entries import place, read, write
from patina.data.images import open_image
from patina.errors import PatinaError

SIZES = Buckets(64, 8)
SHAPES = [(100, 100), (64, 64), (120, 80), (80, 120), (50, 70), (64, 60)]


@pytest.fixture(scope="module")
def vae():
    return tiny.sd15().vae


def draw(path: Path, size: tuple[int, int], seed: int = 0, exif: Image.Exif | None = None) -> Path:
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(small).resize(size).save(path, exif=exif)
    return path


@pytest.fixture
def pictures(tmp_path):
    return [draw(tmp_path / f"{number}.png", size, number) for number, size in enumerate(SHAPES)]


def encode(paths, vae, folder, sizes=SIZES):
    return cache.encode_all([cache.View(path) for path in paths], vae, sizes, folder, 2)


def same(first, second):
    return all(
        torch.equal(a.mean, b.mean) and torch.equal(a.std, b.std) and (a.fit, a.size) == (b.fit, b.size)
        for a, b in zip(first, second, strict=True)
    )


class Deaf(torch.nn.Module):
    """An autoencoder's weights and config without the ability to encode."""

    def __init__(self, vae):
        super().__init__()
        self.vae, self.config = vae, vae.config

    def state_dict(self, *args, **kwargs):
        return self.vae.state_dict(*args, **kwargs)


def test_entries_are_what_the_autoencoder_gives(vae, pictures, tmp_path):
    for path, entry in zip(pictures, encode(pictures, vae, tmp_path / "cache"), strict=True):
        image = open_image(path)
        how = fit(image.size, SIZES)
        pixels = np.asarray(image.resize(how.bucket, Image.Resampling.LANCZOS, how.box), np.float32)
        with torch.no_grad():
            spread = vae.encode(torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None]).latent_dist
        torch.testing.assert_close(entry.mean, spread.mean[0] * 0.18215)
        torch.testing.assert_close(entry.std, spread.std[0] * 0.18215)
        assert entry.mean.shape == (4, how.bucket[1] // 8, how.bucket[0] // 8)
        assert entry.mean.dtype == entry.std.dtype == torch.float32
        assert entry.fit == how


def test_the_shift_is_taken_off_before_scaling(pictures, tmp_path):
    plain, shifted = tiny.sd15().vae, tiny.sd15().vae
    shifted.register_to_config(shift_factor=0.5, scaling_factor=2.0)
    (a,), (b,) = (encode(pictures[:1], vae, tmp_path / "cache") for vae in (plain, shifted))
    torch.testing.assert_close(b.mean, (a.mean / 0.18215 - 0.5) * 2)
    torch.testing.assert_close(b.std, a.std / 0.18215 * 2)


def test_the_second_time_nothing_is_encoded(vae, pictures, tmp_path, capsys):
    first = encode(pictures, vae, tmp_path / "cache")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    assert len(times) == len(pictures)
    capsys.readouterr()
    assert same(first, encode(pictures, Deaf(vae), tmp_path / "cache"))
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert capsys.readouterr() == ("", "")


def test_with_enough_beside_them_they_are_packed_and_read_from_there(vae, pictures, tmp_path):
    for at in range(100):
        write(place(tmp_path / "cache", sha256(bytes([at])).hexdigest()), {"other": torch.ones(3)})
    first = encode(pictures, vae, tmp_path / "cache")
    (shard,) = (path for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert same(first, encode(pictures, Deaf(vae), tmp_path / "cache"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert same(first, encode(pictures, vae, tmp_path / "cache"))


def test_only_what_is_missing_is_encoded(vae, pictures, tmp_path):
    encode(pictures[:3], vae, tmp_path / "cache")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    mixed = encode(pictures, vae, tmp_path / "cache")
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert same(mixed, encode(pictures, vae, tmp_path / "other"))


def test_the_same_content_under_another_name_is_the_same_entry(vae, pictures, tmp_path):
    copy = tmp_path / "copy.jpg"
    copy.write_bytes(pictures[0].read_bytes())
    entries = encode([pictures[0], copy, pictures[0]], vae, tmp_path / "cache")
    assert same(entries[:1] * 3, entries)
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 1


def test_a_key_knows_every_byte_the_buckets_and_the_encoder():
    picture, keys = bytes(range(200)), set()
    for at in range(200):
        keys.add(cache.key_of(picture[:at] + bytes([picture[at] ^ 1]) + picture[at + 1 :], SIZES, "a"))
    keys |= {cache.key_of(picture, sizes, "a") for sizes in (SIZES, Buckets(64, 8, 1), Buckets(64, 16))}
    keys.add(cache.key_of(picture, SIZES, "b"))
    assert len(keys) == 204
    assert cache.key_of(picture, SIZES, "a") in keys


def test_one_changed_pixel_is_encoded_anew(vae, pictures, tmp_path):
    (before,) = encode(pictures[:1], vae, tmp_path / "cache")
    image = Image.open(pictures[0]).convert("RGB")
    image.putpixel((50, 50), (255, 0, 255))
    image.save(pictures[0])
    (after,) = encode(pictures[:1], vae, tmp_path / "cache")
    assert not torch.equal(before.mean, after.mean)


def test_the_fingerprint_knows_every_weight_and_the_scaling_factor():
    base = cache.fingerprint(tiny.sd15().vae)
    assert base == cache.fingerprint(tiny.sd15().vae)
    assert base != cache.fingerprint(tiny.sd15(seed=1).vae)
    assert base != cache.fingerprint(tiny.sd15().vae.half())
    scaled = tiny.sd15().vae
    scaled.register_to_config(scaling_factor=0.2)
    assert base != cache.fingerprint(scaled)
    for name in ("encoder.conv_in.bias", "encoder.conv_out.weight", "quant_conv.bias"):
        nudged = tiny.sd15().vae
        with torch.no_grad():
            value = nudged.get_parameter(name).view(-1)[:1]
            value.copy_(torch.nextafter(value, torch.tensor(9.0)))
        assert base != cache.fingerprint(nudged)


def damages(whole: bytes):
    """Cut short at every kind of place, and single bytes changed all over the file."""
    yield from (whole[:size] for size in (0, 1, 8, 50, len(whole) // 2, len(whole) - 1))
    yield bytes(len(whole))
    yield whole + b"x"
    rng = random.Random(0)
    for at in [*range(500), *rng.sample(range(500, len(whole)), 200)]:
        yield whole[:at] + bytes([whole[at] ^ rng.randint(1, 255)]) + whole[at + 1 :]


def test_damage_is_noticed_wherever_it_is(vae, pictures, tmp_path):
    (entry,) = encode(pictures[:1], vae, tmp_path / "cache")
    (file,) = (tmp_path / "cache").rglob("*.safetensors")
    whole = file.read_bytes()
    for damaged in damages(whole):
        file.write_bytes(damaged)
        found = cache._opened(read(file), SIZES)
        assert found is None or same([found], [entry])  # a space more or less in the header changes nothing
    assert read(file) is None


def test_a_damaged_entry_is_made_anew(vae, pictures, tmp_path):
    first = encode(pictures, vae, tmp_path / "cache")
    files = sorted((tmp_path / "cache").rglob("*.safetensors"))
    whole = files[0].read_bytes()
    files[0].write_bytes(whole[: len(whole) // 2])
    files[1].write_bytes(b"")
    assert same(first, encode(pictures, vae, tmp_path / "cache"))
    assert files[0].read_bytes() == whole


def test_an_entry_that_was_cut_otherwise_is_made_anew(vae, pictures, tmp_path):
    """As an older version with another rule would have left it: all else in it is right."""
    path = draw(tmp_path / "wide.png", (200, 64))
    key = cache.key_of(path.read_bytes(), SIZES, cache.fingerprint(vae))
    other = cache.Encoded(torch.zeros(4, 8, 8), torch.zeros(4, 8, 8), fit((200, 64), Buckets(64, 8, 1)), (200, 64))
    cache._write(place(tmp_path / "cache", key), other)
    (entry,) = encode([path], vae, tmp_path / "cache")
    assert entry.mean.abs().max() > 0
    assert entry.fit == fit((200, 64), SIZES)


def test_a_small_picture_keeps_its_own_pixels_unless_it_shall_be_enlarged(vae, tmp_path):
    """What an older version had enlarged is made anew under the name that it had, and is not taken for the other."""
    path = draw(tmp_path / "small.png", (40, 32))
    small, large = Buckets(64, 8), Buckets(64, 8, upscale=True)
    before = fit((40, 32), large)
    assert before.bucket == (72, 56)
    old = cache.Encoded(torch.zeros(4, 7, 9), torch.zeros(4, 7, 9), before, (40, 32))
    key = cache.key_of(path.read_bytes(), small, cache.fingerprint(vae))
    cache._write(place(tmp_path / "cache", key), old)
    for buckets, shape in ((small, (5, 4)), (large, (9, 7)), (small, (5, 4))):
        (entry,) = cache.encode_all([cache.View(path)], vae, buckets, tmp_path / "cache", 1)
        assert entry.mean.abs().max() > 0
        assert entry.mean.shape[:0:-1] == shape
        assert entry.fit == fit((40, 32), buckets)
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2
    assert cache.key_of(b"", small, "a") != cache.key_of(b"", large, "a")


def test_entries_can_be_read_by_others(vae, pictures, tmp_path):
    (entry,) = encode(pictures[2:3], vae, tmp_path / "cache")
    (file,) = (tmp_path / "cache").rglob("*.safetensors")
    tensors = load_file(file)
    assert torch.equal(tensors["mean"], entry.mean)
    assert tensors["size"].tolist() == [120, 80]
    assert file.parent.name == file.name[:2]


def test_nothing_is_left_beside_the_entries(vae, pictures, tmp_path):
    encode(pictures, vae, tmp_path / "cache")
    assert all(path.suffix == ".safetensors" for path in (tmp_path / "cache").rglob("*") if path.is_file())


def test_unreadable_pictures_are_all_listed(vae, pictures, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(pictures[0].read_bytes()[:-200])
    bad = [tmp_path / "text.png", tmp_path / "gone.png", tmp_path / "cut.png"]
    with pytest.raises(PatinaError) as caught:
        encode([pictures[0], *bad, *pictures[1:]], vae, tmp_path / "cache")
    message = str(caught.value)
    assert f"3 of {3 + len(pictures)} pictures cannot be used" in message
    assert len(message.splitlines()) == 4
    assert all(str(path) in message for path in bad)
    assert not any(str(path) in message for path in pictures)


def test_once_a_picture_is_unreadable_nothing_more_is_encoded(vae, pictures, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(PatinaError, match=r"text\.png"):
        encode([*pictures[:2], tmp_path / "text.png", *pictures[2:]], vae, tmp_path / "cache")
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2


def test_very_many_unreadable_pictures_are_summed_up(vae, tmp_path):
    with pytest.raises(PatinaError, match=r"50 of 50 pictures[\s\S]*\.\.\. and 30 more"):
        encode([tmp_path / f"{number}.png" for number in range(50)], vae, tmp_path / "cache")


def test_numbers_that_are_not_finite_name_the_picture(pictures, tmp_path):
    vae = tiny.sd15().vae
    with torch.no_grad():
        vae.encoder.conv_in.bias.fill_(torch.nan)
    with pytest.raises(PatinaError, match=r"0\.png: .*not finite"):
        encode(pictures, vae, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_disk_error_passes_through(vae, pictures, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="cache"):
        encode(pictures, vae, tmp_path / "cache")


def load(pictures, vae, folder, repeats=1, buckets=True):
    captioned = [Captioned(path, f"a picture called {path.stem}", repeats=repeats) for path in pictures]
    return load_items(
        captioned,
        vae,
        buckets=Buckets(64, 8, 2 if buckets else 1),
        cache_dir=folder,
        workers=None,
    )


def test_an_entry_is_written_while_the_next_picture_is_encoded(vae, pictures, tmp_path, monkeypatch):
    begun, waited, sync = Semaphore(0), [], os.fsync

    def sync_once_the_next_has_begun(handle: int) -> None:
        if not waited:
            begun.acquire()
            waited.append(begun.acquire(timeout=20))
        sync(handle)

    monkeypatch.setattr(os, "fsync", sync_once_the_next_has_begun)
    hook = vae.encoder.register_forward_pre_hook(lambda *_: begun.release())
    found = encode(pictures, vae, tmp_path / "cache")
    hook.remove()
    assert waited == [True]
    assert same(encode(pictures, Deaf(vae), tmp_path / "cache"), found)


def test_a_photo_lying_on_its_side_lands_in_the_upright_bucket(vae, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = draw(tmp_path / "phone.jpg", (120, 80), exif=exif)
    (item,) = load([path], vae, tmp_path / "cache")
    assert item.bucket == fit((80, 120), SIZES).bucket
    assert item.bucket[0] < item.bucket[1]
    assert item.shape == (4, item.bucket[1] // 8, item.bucket[0] // 8)


def test_items_keep_order_caption_and_shape(vae, pictures, tmp_path):
    items = load(pictures, vae, tmp_path / "cache")
    assert [item.path for item in items] == pictures
    assert items[3].caption == "a picture called 3"
    assert len({item.bucket for item in items}) > 2
    squares = {item.bucket for item in load(pictures, vae, tmp_path / "cache", buckets=False)}
    assert {width - height for width, height in squares} == {0}
    assert max(squares) == (64, 64)


@pytest.mark.parametrize("workers", [1, 9])
def test_any_number_of_workers_gives_the_same(vae, pictures, tmp_path, workers):
    captioned = [Captioned(path, "x") for path in pictures]
    where = {"cache_dir": tmp_path / "cache", "workers": workers}
    items = load_items(captioned, vae, buckets=Buckets(64, 8), **where)
    expected = load(pictures, vae, tmp_path / "other")
    assert all(torch.equal(a.latents[0].mean, b.latents[0].mean) for a, b in zip(items, expected, strict=True))


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_an_epoch_shows_each_picture_repeats_times(vae, pictures, tmp_path, repeats, batch_size):
    items = load(pictures, vae, tmp_path / "cache", repeats)
    assert len(items) == len(pictures)
    per_epoch = batches_per_epoch(items, batch_size)
    for epoch, batches in enumerate(halves(epochs(items, batch_size, 0, 0), per_epoch)):
        captions = [caption for batch in batches for caption in batch["captions"]]
        assert sorted(captions) == sorted(item.caption for item in items for _ in range(repeats))
        assert [place for batch in batches for place in batch["places"]] == list(range(len(captions)))
        assert {batch["epoch"] for batch in batches} == {epoch}


def halves(stream, size):
    return list(islice(stream, size)), list(islice(stream, size))


def test_a_batch_holds_the_pictures_it_names(vae, pictures, tmp_path):
    items = load(pictures, vae, tmp_path / "cache", repeats=2)
    by_caption = {item.caption: item for item in items}
    for batch in islice(epochs(items, 2, 0, 0), 20):
        assert len(batch["captions"]) == len(batch["mean"]) == len(batch["std"]) == len(batch["places"])
        for caption, mean, std in zip(batch["captions"], batch["mean"], batch["std"], strict=True):
            assert torch.equal(mean, by_caption[caption].latents[0].mean)
            assert torch.equal(std, by_caption[caption].latents[0].std)


def test_a_batch_says_how_each_picture_was_cut(vae, tmp_path):
    """Freshly encoded and from the cache; a photo lying on its side counts as it is seen."""
    exif = Image.Exif()
    exif[0x0112] = 6
    wide, tall = (draw(tmp_path / f"{size[0]}.png", size) for size in ((640, 128), (96, 480)))
    photo = draw(tmp_path / "phone.jpg", (400, 100), exif=exif)
    for _ in range(2):
        items = load([wide, tall, photo], vae, tmp_path / "cache")
        (batch,) = islice(epochs(load([wide], vae, tmp_path / "cache"), 1, 0, 0), 1)
        # 640 x 128 is scaled to 240 x 48, of which the middle 80 are kept
        assert {item.path.name: (item.bucket, item.latents[0].sizes) for item in items} == {
            "640.png": ((80, 48), (128, 640, 0, 80, 48, 80)),
            "96.png": ((48, 80), (480, 96, 80, 0, 80, 48)),
            "phone.jpg": ((48, 80), (400, 100, 56, 0, 80, 48)),
        }
        assert batch["time_ids"].dtype == torch.float32
        assert batch["time_ids"].tolist() == [list(items[0].latents[0].sizes)]


def equal(first, second):
    return all(
        torch.equal(a["mean"], b["mean"]) and [a[key] for key in KEYS] == [b[key] for key in KEYS]
        for a, b in zip(first, second, strict=True)
    )


KEYS = ("captions", "epoch", "places")


def test_beginning_later_is_the_same_as_skipping(vae, pictures, tmp_path):
    items = load(pictures, vae, tmp_path / "cache", repeats=2)
    whole = list(islice(epochs(items, 2, 5, 0), 40))
    for start in range(25):
        assert equal(list(islice(epochs(items, 2, 5, start), 15)), whole[start : start + 15])
    assert not equal(whole, list(islice(epochs(items, 2, 6, 0), 40)))


def test_epochs_differ(vae, pictures, tmp_path):
    items = load(pictures, vae, tmp_path / "cache", repeats=2)
    first, second = halves(epochs(items, 2, 5, 0), batches_per_epoch(items, 2))
    assert [batch["captions"] for batch in first] != [batch["captions"] for batch in second]


def test_the_report_counts_shapes(vae, pictures, tmp_path):
    extra = [draw(tmp_path / "strip.png", (300, 40)), draw(tmp_path / "tall.png", (60, 200))]
    items = load(pictures + extra, vae, tmp_path / "cache", repeats=2)
    (shapes,) = report(items)
    assert shapes.startswith("8, each 2 times an epoch: ")
    assert "64x64" in shapes
    counts = bucket_counts(items)
    assert sum(counts.values()) == 16
    assert counts[64, 64] == 2 * sum(item.bucket == (64, 64) for item in items)
    assert list(counts) == sorted(counts)
