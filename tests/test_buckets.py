"""Buckets keep area and aspect, fits stay inside their picture, and every epoch shows each picture once, in any order
that the seed decides."""

import math
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from patina.data.buckets import Buckets, fit, growth, order, size_ids

SETTINGS = [(64, 8), (128, 16), (256, 32), (512, 64), (512, 8), (768, 64), (1024, 64), (500, 64), (480, 64), (64, 64)]


@pytest.mark.parametrize(("resolution", "step"), SETTINGS)
def test_buckets_have_the_squares_area_and_never_more(resolution, step):
    sizes = Buckets(resolution, step).sizes
    ((side, _),) = Buckets(resolution, step, 1).sizes
    assert abs(side - resolution) <= step / 2
    for width, height in sizes:
        assert width % step == height % step == 0
        assert 0.5 <= width / height <= 2
        assert side * side - max(width, height) * step < width * height <= side * side  # one step more would not fit


@pytest.mark.parametrize(("resolution", "step"), SETTINGS)
def test_buckets_are_symmetric_distinct_and_hold_the_square(resolution, step):
    sizes = Buckets(resolution, step).sizes
    assert Buckets(resolution, step, 1).sizes[0] in sizes
    assert {(height, width) for width, height in sizes} == set(sizes)
    assert len({width for width, _ in sizes}) == len({height for _, height in sizes}) == len(sizes)


def test_the_buckets_of_stable_diffusion():
    assert Buckets(512, 64).sizes == ((384, 640), (448, 576), (512, 512), (576, 448), (640, 384))
    assert Buckets(512, 64, max_aspect=4).sizes[0] == (256, 1024)
    assert Buckets(512, 64, 1).sizes == ((512, 512),)
    assert Buckets(500, 64, 1).sizes == ((512, 512),)


def many_sizes(number=3000):
    rng = random.Random(1)
    yield from [(1, 1), (1, 10_000), (10_000, 1), (7919, 1), (3, 2), (1920, 1080), (4032, 3024)]
    for _ in range(number):
        yield rng.randint(1, 5000), rng.randint(1, 5000)


@pytest.mark.parametrize("upscale", [False, True])
def test_a_fit_is_the_largest_centred_part_of_the_buckets_shape(upscale):
    buckets = Buckets(512, 64, upscale=upscale)
    for width, height in many_sizes():
        cut = fit((width, height), buckets)
        left, top, right, bottom = cut.box
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        assert (left, top) == pytest.approx((width - right, height - bottom))
        assert left == 0 or top == 0
        assert (right - left) / (bottom - top) == pytest.approx(cut.bucket[0] / cut.bucket[1])
        assert cut.kept == pytest.approx((right - left) * (bottom - top) / (width * height))


def test_no_other_bucket_would_keep_more():
    buckets = Buckets(512, 64, upscale=True)
    for width, height in many_sizes(500):
        shapes = (across * height / (down * width) for across, down in buckets.sizes)
        best = max(min(shape, 1 / shape) for shape in shapes)
        assert fit((width, height), buckets).kept == pytest.approx(best)


def test_no_picture_is_enlarged_that_is_as_large_as_a_step():
    for resolution, step in SETTINGS:
        buckets, enlarging = Buckets(resolution, step), Buckets(resolution, step, upscale=True)
        small = 0
        for size in many_sizes(500):
            cut, other = fit(size, buckets), fit(size, enlarging)
            assert max(cut.bucket) <= 2 * min(cut.bucket)
            assert math.prod(cut.bucket) <= max(math.prod(one) for one in buckets.sizes)
            if growth(other) <= 1:
                assert cut == other
            elif min(size) >= step:
                small += 1
                assert growth(cut) <= 1
                assert all(edge % step == 0 for edge in cut.bucket)
        assert small or resolution == step


def test_a_small_picture_gets_the_largest_bucket_that_fits_within_it():
    def cut(*size, **how):
        return fit(size, Buckets(512, 64, **how)).bucket

    assert cut(511, 511) == (448, 448)
    assert cut(512, 512) == (512, 512)
    assert cut(300, 200) == (256, 192)
    assert cut(300, 2000) == (256, 512)  # no longer than twice its width
    assert cut(2000, 65) == (128, 64)
    assert cut(700, 380) == (640, 320)
    assert cut(30, 20) == (64, 64)  # there is no smaller one
    assert cut(300, 200, max_aspect=1) == (192, 192)
    assert cut(300, 200, upscale=True) == (640, 384)


def test_a_picture_of_its_buckets_shape_is_kept_whole():
    for width, height in Buckets(512, 64).sizes:
        for scale in (1, 2, 3):
            cut = fit((width * scale, height * scale), Buckets(512, 64))
            assert cut.bucket == (width, height)
            assert cut.box == (0, 0, width * scale, height * scale)
            assert cut.kept == 1


@pytest.mark.parametrize("size", [(1, 9000), (9000, 1), (333, 77), (64, 64), (20, 31)])
def test_pillow_takes_every_box(size):
    cut = fit(size, Buckets(64, 8))
    assert Image.new("RGB", size).resize(cut.bucket, Image.Resampling.LANCZOS, cut.box).size == cut.bucket


def test_the_middle_is_what_is_kept():
    picture = np.zeros((64, 192, 3), np.uint8)
    picture[:, 64:128] = 255
    cut = fit((192, 64), Buckets(64, 8, 1, upscale=True))
    assert cut.box == (64, 0, 128, 64)
    assert np.asarray(Image.fromarray(picture).resize(cut.bucket, Image.Resampling.LANCZOS, cut.box)).min() == 255


@pytest.mark.parametrize("size", [(640, 100), (100, 640), (2048, 1024), (64, 64), (31, 20)])
def test_sdxl_is_told_the_size_and_the_cut_that_scaling_first_would_give(size):
    """Scaled to cover the bucket and then cut in the middle, which is how SDXL's own pictures were made."""
    cut = fit(size, Buckets(64, 8, 1, upscale=True))
    scale = max(64 / size[0], 64 / size[1])
    left, top = ((edge * scale - 64) / 2 for edge in size)
    assert size_ids(size, cut) == (size[1], size[0], round(top), round(left), 64, 64)
    assert size_ids((64, 64), fit((64, 64), Buckets(64, 8, 1, upscale=True))) == (64, 64, 0, 0, 64, 64)


def random_buckets(seed):
    rng = random.Random(seed)
    return [rng.choice([(64, 64), (56, 72), (72, 56)]) for _ in range(rng.randint(1, 40))]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("batch_size", [1, 3, 8, 64])
def test_each_index_once_and_each_batch_of_one_bucket(seed, batch_size):
    buckets = random_buckets(seed)
    batches = order(buckets, batch_size, seed, epoch=seed)
    assert sorted(index for batch in batches for index in batch) == list(range(len(buckets)))
    assert all(len({buckets[index] for index in batch}) == 1 for batch in batches)
    short = Counter(buckets[batch[0]] for batch in batches if len(batch) < batch_size)
    assert all(0 < len(batch) <= batch_size for batch in batches)
    assert all(number == 1 for number in short.values())


def test_order_depends_on_seed_and_epoch_alone():
    buckets = [(64, 64)] * 30 + [(56, 72)] * 9
    state = random.getstate()
    assert order(buckets, 4, 1, 0) == order(buckets, 4, 1, 0)
    assert len({str(order(buckets, 4, seed, epoch)) for seed in range(5) for epoch in range(5)}) == 25
    assert random.getstate() == state


def test_batches_are_shuffled_across_buckets_and_within():
    buckets = [(64, 64)] * 40 + [(56, 72)] * 40
    batches = order(buckets, 4, 0, 0)
    shapes = [buckets[batch[0]] for batch in batches]
    assert shapes != sorted(shapes)
    assert shapes != sorted(shapes, reverse=True)
    assert any(batch != sorted(batch) for batch in batches)


def test_order_is_the_same_in_another_process():
    code = "from patina.data.buckets import order; print(order([(8, 8)] * 9 + [(8, 16)] * 3, 2, 7, 3))"
    here = str(order([(8, 8)] * 9 + [(8, 16)] * 3, 2, 7, 3))
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == here
    )
    assert here == ORDER  # a change here changes what every resumed run sees


ORDER = "[[7, 8], [6, 5], [1, 2], [3], [10], [11, 9], [0, 4]]"
