"""Bucketing: which shapes are trained, how each picture is cut to one, and in what order an epoch shows them."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

Size = tuple[int, int]
"""(width, height) in pixels."""

MAX_ASPECT = 2.0
"""How long a bucket may be for its width. Bases saw few longer pictures, and draw them badly."""


@dataclass(frozen=True)
class Fit:
    """How a picture is cut to its bucket: `image.resize(bucket, box=box)`."""

    bucket: Size
    box: tuple[float, float, float, float]
    """Left, top, right, bottom of the part that is used: the middle one, in the picture's own pixels.

    Pillow cuts and scales in one go, so that no picture is ever larger than it was or than its bucket: scaled to
    cover a bucket first, a strip of 1 x 10,000 pixels would take gigabytes.
    """
    kept: float
    """Share of the picture's area within `box`, above 0, at most 1."""


@dataclass(frozen=True)
class Buckets:
    """Which shapes a run trains; their edges are multiples of `step` pixels."""

    resolution: int
    step: int
    max_aspect: float = MAX_ASPECT
    """How long a bucket may be for its width; 1: squares alone."""
    upscale: bool = False
    """Whether a small picture is enlarged to one of `sizes`; if not, its bucket is as large as fits within it."""

    @cached_property
    def sizes(self) -> tuple[Size, ...]:
        """Those of pictures that are large enough, in order of width, with areas as near as may be to the square's.

        The square has the multiple of `step` nearest to `resolution` as its edge, and no bucket has more area than it:
        a batch of any shape fits where a batch of squares does (as in NovelAI's aspect ratio bucketing, 2022).
        """
        side = self._side
        tall = [(width, side * side // width) for width in range(1, side + 1)]
        tall = [(width, height) for width, height in tall if height <= self.max_aspect * width]
        both = {*tall, *((height, width) for width, height in tall)}
        return tuple(sorted((width * self.step, height * self.step) for width, height in both))

    def within(self, size: Size) -> Size:
        """The largest bucket that fits within a picture of `size` that is too small for one of `sizes`; the least
        bucket where none fits."""
        short, long = sorted(max(edge // self.step, 1) for edge in size)
        long = min(long, int(short * self.max_aspect), self._side**2 // short) * self.step
        return (short * self.step, long) if size[0] < size[1] else (long, short * self.step)

    @property
    def _side(self) -> int:
        """The square's edge, in steps."""
        return max(round(self.resolution / self.step), 1)


def usual_step(resolution: int) -> int:
    """The pixels between bucket edges where none are asked for: an eighth of the resolution, between 8 and 64."""
    return min(max(resolution // 8 // 8 * 8, 8), 64)


def fit(size: Size, buckets: Buckets) -> Fit:
    """Cut a picture of `size` (upright) to the bucket whose aspect ratio is nearest to its own."""
    aspect = math.log(size[0] / size[1])
    nearest = min(buckets.sizes, key=lambda other: abs(aspect - math.log(other[0] / other[1])))
    how = _cut(size, nearest)
    return how if buckets.upscale or growth(how) <= 1 else _cut(size, buckets.within(size))


def growth(how: Fit) -> float:
    """How many times as wide a picture becomes to fill its bucket; below 1: it is scaled down."""
    left, _, right, _ = how.box
    return how.bucket[0] / (right - left)


def _cut(size: Size, bucket: Size) -> Fit:
    """The middle of the picture, as much of it as has the bucket's shape."""
    width, height = size
    across, down = bucket
    if width * down >= height * across:
        used = height * across / down
        left = (width - used) / 2
        return Fit(bucket, (left, 0.0, width - left, float(height)), used / width)
    used = width * down / across
    top = (height - used) / 2
    return Fit(bucket, (0.0, top, float(width), height - top), used / height)


def size_ids(size: Size, how: Fit) -> tuple[int, int, int, int, int, int]:
    """What SDXL is told of a picture of `size`: its height and width, pixels cut off at the top and at the left, and
    the bucket's height and width (Podell et al. 2023, arXiv:2307.01952, sections 2.2 and 2.3).

    As in the paper, what is cut off is counted after scaling, so that (0, 0) is a picture with its corner in sight.
    (sd-scripts counts the rims that the whole picture would leave if it were fitted into the bucket: other numbers.)
    """
    left, top, right, _ = how.box
    width, height = how.bucket
    scale = width / (right - left)
    return size[1], size[0], round(top * scale), round(left * scale), height, width


def order(buckets: Sequence[Size], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """One epoch's batches of indices into `buckets`, each index once, each batch of one bucket.

    A function of its arguments alone, the same on every machine. Shuffled within buckets and across batches; a
    bucket's last batch may be short, and is kept: dropping it would never show some pictures of small sets.
    """
    # a text seeds the generator through SHA-512; Python's hash() of it would differ from process to process
    rng = random.Random(f"order {seed} {epoch}")
    batches = []
    for bucket in sorted(set(buckets)):
        members = [index for index, own in enumerate(buckets) if own == bucket]
        rng.shuffle(members)
        batches += [members[at : at + batch_size] for at in range(0, len(members), batch_size)]
    rng.shuffle(batches)
    return batches
