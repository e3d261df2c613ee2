"""What the world's things look like: outlines in a unit square, each with a tone of the thing's colour."""

import math
from collections.abc import Callable
from typing import NamedTuple

Points = tuple[tuple[float, float], ...]


class Part(NamedTuple):
    """One filled outline of a thing; x grows to the right, y downwards, both from -1 to 1."""

    points: Points
    tone: str
    """`base`, `dark` or `light` of the thing's colour; `ink` and `paper` are the same in every colour."""


def _oval(x: float, y: float, rx: float, ry: float, tone: str = "base", start: float = 0, stop: float = 360) -> Part:
    count = 28
    angles = (math.radians(start + (stop - start) * i / count) for i in range(count + (stop - start < 360)))
    return Part(tuple((x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles), tone)


def _box(left: float, top: float, right: float, bottom: float, tone: str = "base") -> Part:
    return Part(((left, top), (right, top), (right, bottom), (left, bottom)), tone)


def _shape(*points: tuple[float, float], tone: str = "base") -> Part:
    return Part(points, tone)


def _star(x: float, y: float, outer: float, inner: float, spikes: int, tone: str = "base") -> Part:
    radii = (outer, inner) * spikes
    turns = (math.pi * i / spikes - math.pi / 2 for i in range(2 * spikes))
    return Part(tuple((x + r * math.cos(a), y + r * math.sin(a)) for r, a in zip(radii, turns, strict=True)), tone)


def _house() -> list[Part]:
    return [
        _box(-0.7, -0.1, 0.7, 0.9),
        _shape((-0.95, -0.1), (0, -0.9), (0.95, -0.1), tone="dark"),
        _box(-0.15, 0.35, 0.2, 0.9, "dark"),
        _box(-0.55, 0.1, -0.25, 0.4, "paper"),
        _box(0.3, 0.1, 0.58, 0.4, "paper"),
    ]


def _boat() -> list[Part]:
    return [
        _box(-0.05, -0.9, 0.05, 0.35, "ink"),
        _shape((0.1, -0.85), (0.75, 0.25), (0.1, 0.25), tone="light"),
        _shape((-0.1, -0.6), (-0.1, 0.25), (-0.6, 0.25), tone="paper"),
        _shape((-0.95, 0.35), (0.95, 0.35), (0.6, 0.85), (-0.6, 0.85)),
    ]


def _car() -> list[Part]:
    return [
        _shape((-0.55, 0.1), (-0.3, -0.45), (0.3, -0.45), (0.6, 0.1), tone="dark"),
        _shape((-0.4, 0.05), (-0.22, -0.32), (0.0, -0.32), (0.0, 0.05), tone="paper"),
        _shape((0.08, 0.05), (0.08, -0.32), (0.25, -0.32), (0.42, 0.05), tone="paper"),
        _shape((-0.95, 0.1), (0.8, 0.1), (0.97, 0.3), (0.97, 0.6), (-0.95, 0.6)),
        _oval(-0.5, 0.6, 0.23, 0.23, "ink"),
        _oval(0.5, 0.6, 0.23, 0.23, "ink"),
        _oval(-0.5, 0.6, 0.1, 0.1, "paper"),
        _oval(0.5, 0.6, 0.1, 0.1, "paper"),
    ]


def _tree() -> list[Part]:
    return [
        _box(-0.12, 0.3, 0.12, 0.95, "ink"),
        _shape((-0.75, 0.5), (0, -0.2), (0.75, 0.5), tone="dark"),
        _shape((-0.62, 0.12), (0, -0.58), (0.62, 0.12)),
        _shape((-0.45, -0.3), (0, -0.97), (0.45, -0.3), tone="light"),
    ]


def _fish() -> list[Part]:
    return [
        _shape((0.45, 0), (0.95, -0.45), (0.85, 0), (0.95, 0.45), tone="dark"),
        _shape((-0.2, -0.3), (0.15, -0.72), (0.3, -0.25), tone="dark"),
        _oval(-0.15, 0, 0.78, 0.45),
        _oval(-0.05, 0.12, 0.4, 0.18, "light"),
        _oval(-0.6, -0.1, 0.12, 0.12, "paper"),
        _oval(-0.62, -0.1, 0.06, 0.06, "ink"),
    ]


def _bird() -> list[Part]:
    return [
        _shape((0.3, 0.05), (0.97, -0.25), (0.95, 0.2), tone="dark"),
        _oval(0.0, 0.15, 0.6, 0.45),
        _oval(-0.5, -0.35, 0.34, 0.33),
        _shape((-0.8, -0.4), (-0.99, -0.25), (-0.78, -0.2), tone="ink"),
        _oval(0.1, 0.1, 0.35, 0.22, "dark"),
        _oval(-0.58, -0.42, 0.08, 0.08, "paper"),
        _box(-0.15, 0.58, -0.08, 0.92, "ink"),
        _box(0.1, 0.58, 0.17, 0.92, "ink"),
    ]


def _cat() -> list[Part]:
    return [
        _shape((0.5, 0.6), (0.95, 0.3), (0.85, -0.2), (0.97, -0.2), (0.99, 0.45), (0.55, 0.85), tone="dark"),
        _oval(0.1, 0.5, 0.55, 0.45),
        _shape((-0.72, -0.2), (-0.72, -0.92), (-0.3, -0.5), tone="dark"),
        _shape((0.12, -0.2), (0.12, -0.92), (-0.3, -0.5), tone="dark"),
        _oval(-0.3, -0.2, 0.48, 0.42),
        _oval(-0.47, -0.25, 0.09, 0.11, "paper"),
        _oval(-0.13, -0.25, 0.09, 0.11, "paper"),
        _oval(-0.47, -0.25, 0.04, 0.08, "ink"),
        _oval(-0.13, -0.25, 0.04, 0.08, "ink"),
        _shape((-0.37, -0.05), (-0.23, -0.05), (-0.3, 0.04), tone="ink"),
    ]


def _flower() -> list[Part]:
    petals = [
        _oval(0.36 * math.cos(a), -0.35 + 0.36 * math.sin(a), 0.27, 0.27) for a in (math.pi / 3 * i for i in range(6))
    ]
    return [
        _box(-0.06, -0.2, 0.06, 0.95, "ink"),
        _shape((0, 0.75), (0.5, 0.3), (0.4, 0.7), tone="ink"),
        *petals,
        _oval(0, -0.35, 0.2, 0.2, "paper"),
    ]


def _mushroom() -> list[Part]:
    return [
        _shape((-0.25, 0), (0.25, 0), (0.35, 0.9), (-0.35, 0.9), tone="paper"),
        _oval(0, 0.1, 0.9, 0.85, "base", 180, 360),
        _oval(-0.4, -0.25, 0.15, 0.13, "paper"),
        _oval(0.15, -0.45, 0.14, 0.12, "paper"),
        _oval(0.5, -0.12, 0.12, 0.1, "paper"),
    ]


def _balloon() -> list[Part]:
    return [
        _box(-0.03, 0.4, 0.03, 0.97, "ink"),
        _shape((0, 0.3), (0.16, 0.5), (-0.16, 0.5), tone="dark"),
        _oval(0, -0.25, 0.6, 0.68),
        _oval(-0.22, -0.5, 0.14, 0.2, "light"),
    ]


def _rocket() -> list[Part]:
    return [
        _shape((-0.18, 0.55), (0, 0.98), (0.18, 0.55), tone="paper"),
        _shape((-0.3, 0.05), (-0.7, 0.7), (-0.25, 0.55), tone="dark"),
        _shape((0.3, 0.05), (0.7, 0.7), (0.25, 0.55), tone="dark"),
        _shape((-0.3, 0.6), (-0.34, -0.2), (0, -0.97), (0.34, -0.2), (0.3, 0.6)),
        _oval(0, -0.12, 0.17, 0.17, "paper"),
    ]


def _cup() -> list[Part]:
    return [
        _oval(0.6, 0.05, 0.33, 0.33, "dark"),
        _oval(0.6, 0.05, 0.17, 0.17, "paper"),
        _shape((-0.7, -0.45), (0.6, -0.45), (0.45, 0.75), (-0.55, 0.75)),
        _oval(-0.05, -0.45, 0.65, 0.17, "light"),
    ]


def _five_pointed_star() -> list[Part]:
    return [_star(0, 0.03, 0.97, 0.42, 5), _star(0, 0.03, 0.5, 0.22, 5, "light")]


def _umbrella() -> list[Part]:
    return [
        _box(-0.05, -0.1, 0.05, 0.85, "ink"),
        _shape((0.05, 0.72), (0.3, 0.72), (0.3, 0.88), (-0.05, 0.88), tone="ink"),
        _oval(0, 0.05, 0.95, 0.9, "base", 180, 360),
        _shape((0, -0.85), (0.32, 0.05), (-0.32, 0.05), tone="light"),
    ]


def _robot() -> list[Part]:
    return [
        _box(-0.03, -0.97, 0.03, -0.7, "ink"),
        _box(-0.42, -0.72, 0.42, -0.12),
        _oval(-0.18, -0.45, 0.11, 0.11, "paper"),
        _oval(0.18, -0.45, 0.11, 0.11, "paper"),
        _box(-0.22, -0.27, 0.22, -0.2, "ink"),
        _box(-0.85, 0.0, -0.6, 0.5, "dark"),
        _box(0.6, 0.0, 0.85, 0.5, "dark"),
        _box(-0.55, -0.05, 0.55, 0.6),
        _box(-0.25, 0.1, 0.25, 0.4, "light"),
        _box(-0.4, 0.62, -0.12, 0.95, "dark"),
        _box(0.12, 0.62, 0.4, 0.95, "dark"),
    ]


def _butterfly() -> list[Part]:
    return [
        _oval(-0.5, -0.38, 0.45, 0.45),
        _oval(0.5, -0.38, 0.45, 0.45),
        _oval(-0.4, 0.42, 0.34, 0.38, "dark"),
        _oval(0.4, 0.42, 0.34, 0.38, "dark"),
        _oval(-0.5, -0.38, 0.18, 0.18, "light"),
        _oval(0.5, -0.38, 0.18, 0.18, "light"),
        _oval(0, 0, 0.09, 0.65, "ink"),
    ]


THINGS: dict[str, Callable[[], list[Part]]] = {
    "house": _house,
    "boat": _boat,
    "car": _car,
    "tree": _tree,
    "fish": _fish,
    "bird": _bird,
    "cat": _cat,
    "flower": _flower,
    "mushroom": _mushroom,
    "balloon": _balloon,
    "rocket": _rocket,
    "cup": _cup,
    "star": _five_pointed_star,
    "umbrella": _umbrella,
    "robot": _robot,
    "butterfly": _butterfly,
}
"""Kind of thing -> its parts, the rearmost first."""
