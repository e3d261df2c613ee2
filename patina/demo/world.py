"""Scenes that can be said in one sentence and drawn in any style: the world the embedded models know."""

import math
import random
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple
from zlib import crc32

from patina.demo.things import THINGS, Points

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (214, 40, 40),
    "orange": (245, 135, 20),
    "yellow": (250, 215, 40),
    "green": (50, 160, 70),
    "blue": (45, 95, 215),
    "purple": (130, 60, 180),
    "pink": (245, 130, 180),
    "white": (245, 245, 240),
}
GROUNDS: dict[str, Colour] = {
    "red": (196, 84, 78),
    "orange": (236, 176, 112),
    "yellow": (244, 228, 150),
    "green": (138, 190, 132),
    "blue": (120, 168, 224),
    "purple": (160, 130, 200),
    "pink": (246, 196, 214),
    "black": (38, 36, 44),
}
"""Colours of plain backgrounds: apart from the things' own, so that red on red can be seen."""
INK: Colour = (46, 40, 44)
PAPER: Colour = (252, 248, 236)
SIZES = {"small": 0.72, "": 0.86, "big": 1.0}
COUNTS = {1: "a", 2: "two", 3: "three"}
RELATIONS = ("left of", "right of", "above", "below")
PLURALS = {"fish": "fish", "butterfly": "butterflies"}


class Outline(NamedTuple):
    """A filled polygon in the unit square (0 to 1, y downwards)."""

    points: Points
    fill: Colour
    layer: str
    """`ground` for the backdrop, `thing` for what stands before it, `detail` for small marks on a thing."""


@dataclass(frozen=True)
class Group:
    """One to three things alike."""

    kind: str
    colour: str
    size: str = ""
    count: int = 1

    def words(self) -> str:
        """As the caption says it: "two small red boats"."""
        noun = self.kind if self.count == 1 else PLURALS.get(self.kind, f"{self.kind}s")
        words = [word for word in (self.size, self.colour, noun) if word]
        article = "an" if self.count == 1 and words[0][0] in "aeiou" else COUNTS[self.count]
        return " ".join((article, *words))


@dataclass(frozen=True)
class Scene:
    """One or two groups before a backdrop; `relation` says where the first stands from the second."""

    groups: tuple[Group, ...]
    backdrop: str
    relation: str = ""
    seed: int = 0
    """Seeds the small shifts of place and size that the caption does not tell."""

    def caption(self) -> str:
        """The scene in one sentence, without a word on how it is drawn."""
        subject = f" {self.relation} ".join(group.words() for group in self.groups)
        separator = ", " if len(self.groups) > 1 else " "
        return f"{subject}{separator}{self.place()}"

    def place(self) -> str:
        """Where the scene is, as the caption says it."""
        article = "an" if self.backdrop[0] in "aeiou" else "a"
        return BACKDROPS.get(self.backdrop, f"on {article} {self.backdrop} background")

    def outlines(self) -> list[Outline]:
        """What to draw, the rearmost first."""
        rng = random.Random(self.seed)
        drawn = _backdrop(self.backdrop, rng)
        alone = len(self.groups) == 1
        for group, place in zip(self.groups, _places(self), strict=True):
            for x, y, radius in _spread(group, alone, *place, rng):
                drawn += _thing(group, x, y, radius)
        return drawn


BACKDROPS: dict[str, str] = {
    "meadow": "in a green meadow",
    "snow": "in the snow",
    "desert": "in the desert",
    "sea": "by the sea",
    "night": "at night under the moon",
    "city": "in the city",
}
"""Backdrops that are places, as the caption says them; any other is a colour of GROUNDS."""


def random_scene(rng: random.Random, *, groups: int | None = None) -> Scene:
    """Draw a scene: two thirds hold one group, one third two groups in a relation."""
    number = groups or rng.choice((1, 1, 2))
    kinds = rng.sample(sorted(THINGS), number)
    colours = rng.sample(sorted(COLOURS), number)
    drawn = tuple(
        Group(kind, colour, rng.choice(sorted(SIZES)), rng.choice((1, 1, 2, 3) if number == 1 else (1, 1, 1, 2)))
        for kind, colour in zip(kinds, colours, strict=True)
    )
    backdrop = rng.choice((rng.choice(sorted(GROUNDS)), rng.choice(sorted(BACKDROPS))))
    relation = rng.choice(RELATIONS) if number == 2 else ""
    return Scene(drawn, backdrop, relation, rng.getrandbits(32))


def scenes(count: int, seed: int, *, held_out: bool = False) -> list[Scene]:
    """`count` scenes that are a function of the seed alone.

    One caption in sixteen is held out: with `held_out` only scenes of those captions come, else none of them.
    """
    rng = random.Random(seed)
    endless = iter(lambda: random_scene(rng), None)
    return list(islice((s for s in endless if (crc32(s.caption().encode()) % 16 == 0) == held_out), count))


def _places(scene: Scene) -> list[tuple[float, float, bool]]:
    """Centre of each group, and whether its room is tall (beside the other group) rather than wide."""
    if len(scene.groups) == 1:
        return [(0.5, 0.52, False)]
    first = {"left of": (0.25, 0.54), "right of": (0.75, 0.54), "above": (0.5, 0.26), "below": (0.5, 0.75)}
    x, y = first[scene.relation]
    other = (1 - x, y) if x != 0.5 else (x, 1.02 - y)
    return [(x, y, x != 0.5), (*other, x != 0.5)]


def _spread(group: Group, alone: bool, x: float, y: float, tall: bool, rng: random.Random) -> list[tuple[float, ...]]:
    """Where each thing of a group stands, and its half-size."""
    if alone:
        slots = {
            1: [(0.0, 0.0, 0.44)],
            2: [(-0.24, 0.0, 0.23), (0.24, 0.0, 0.23)],
            3: [(-0.24, 0.22, 0.22), (0.24, 0.22, 0.22), (0.0, -0.23, 0.22)],
        }[group.count]
    elif group.count == 1:
        slots = [(0.0, 0.0, 0.25)]
    else:
        slots = [(0.0, -0.22, 0.21), (0.0, 0.22, 0.21)] if tall else [(-0.22, 0.0, 0.21), (0.22, 0.0, 0.21)]
    scale = SIZES[group.size] * rng.uniform(0.95, 1.04)
    shift_x, shift_y = (rng.uniform(-0.03, 0.03) for _ in range(2))
    return [(x + dx + shift_x, y + dy + shift_y, half * scale) for dx, dy, half in slots]


def _thing(group: Group, x: float, y: float, radius: float) -> list[Outline]:
    tones = _tones(COLOURS[group.colour])
    return [
        Outline(
            tuple((x + radius * px, y + radius * py) for px, py in part.points),
            tones[part.tone],
            "detail" if part.tone in ("ink", "paper") else "thing",
        )
        for part in THINGS[group.kind]()
    ]


def _tones(base: Colour) -> dict[str, Colour]:
    return {"base": base, "dark": mix(base, INK, 0.28), "light": mix(base, PAPER, 0.42), "ink": INK, "paper": PAPER}


def mix(one: Colour, other: Colour, share: float) -> Colour:
    """`share` of `other` in `one`, channel by channel."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


def _band(top: float, bottom: float, fill: Colour) -> Outline:
    """A stripe across the picture; where it touches the frame it reaches beyond it, so that no line is seen there."""
    low = 1.05 if bottom == 1 else bottom
    high = -0.05 if top == 0 else top
    return Outline(((-0.05, high), (1.05, high), (1.05, low), (-0.05, low)), fill, "ground")


def _sky(top: Colour, low: Colour, bottom: float) -> list[Outline]:
    steps = 6
    return [_band(bottom * i / steps, bottom, mix(top, low, i / (steps - 1))) for i in range(steps)]


def _hill(left: float, peak: float, right: float, base: float, fill: Colour) -> Outline:
    rise = base - peak
    points = tuple((left + (right - left) * i / 12, base - rise * (1 - ((i - 6) / 6) ** 2)) for i in range(13))
    return Outline((*points, (right, 1.05), (left, 1.05)), fill, "ground")


def _disc(x: float, y: float, radius: float, fill: Colour) -> Outline:
    turns = (2 * math.pi * i / 16 for i in range(16))
    return Outline(tuple((x + radius * math.cos(a), y + radius * math.sin(a)) for a in turns), fill, "ground")


def _backdrop(name: str, rng: random.Random) -> list[Outline]:
    if name in GROUNDS:
        return [_band(0, 1, GROUNDS[name])]
    horizon = rng.uniform(0.56, 0.68)
    sun = _disc(rng.choice((0.12, 0.88)), rng.uniform(0.1, 0.16), 0.07, (255, 240, 170))
    match name:
        case "meadow":
            hills = [_hill(-0.3, horizon - 0.12, 0.6, horizon, (120, 180, 110)), _band(horizon, 1, (108, 176, 84))]
            return [*_sky((130, 196, 240), (214, 236, 248), horizon), sun, *hills]
        case "snow":
            hills = [_hill(0.3, horizon - 0.16, 1.3, horizon, (206, 222, 238)), _band(horizon, 1, (236, 242, 248))]
            return [*_sky((160, 186, 214), (222, 230, 240), horizon), *hills]
        case "desert":
            dunes = [_hill(-0.2, horizon - 0.1, 0.8, horizon, (226, 176, 104)), _band(horizon, 1, (236, 198, 128))]
            return [*_sky((244, 190, 130), (252, 228, 186), horizon), sun, *dunes]
        case "sea":
            sand = _band(0.82, 1, (240, 220, 168))
            return [*_sky((140, 204, 244), (226, 242, 250), horizon), sun, _band(horizon, 1, (58, 140, 190)), sand]
        case "night":
            moon = _disc(rng.choice((0.14, 0.86)), rng.uniform(0.11, 0.17), 0.08, (246, 240, 200))
            return [*_sky((22, 26, 62), (58, 58, 112), horizon), moon, _band(horizon, 1, (36, 48, 62))]
        case "city":
            sky = _sky((176, 190, 214), (236, 224, 214), horizon)
            return [*sky, *_skyline(horizon, rng), _band(horizon, 1, (150, 148, 156))]
        case _:
            raise ValueError(f"{name!r} is no backdrop; known are {', '.join((*GROUNDS, *BACKDROPS))}")


def _skyline(horizon: float, rng: random.Random) -> list[Outline]:
    tops = [horizon - rng.uniform(0.12, 0.42) for _ in range(6)]
    shades = ((120, 124, 148), (142, 142, 164))
    return [
        Outline(((i / 6, top), (i / 6 + 0.15, top), (i / 6 + 0.15, horizon), (i / 6, horizon)), shades[i % 2], "ground")
        for i, top in enumerate(tops)
    ]
