"""The demo's training data: a folder of pictures in one style, and a table of answers in one manner."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from patina.demo.questions import questions
from patina.demo.styles import Size, draw
from patina.demo.world import Scene, scenes
from patina.files import replacing, write_text

MIXED: tuple[Size, ...] = ((184, 184), (176, 176), (240, 180), (192, 192), (180, 240), (184, 184))
"""Width and height of one picture after another: most square, as a user's own folder would be, some not."""
SMALL: tuple[Size, ...] = ((128, 128),)


def save_pictures(folder: Path, style: str, count: int, seed: int, sizes: Sequence[Size]) -> None:
    """Write 0001.png and on: `count` scenes that differ much from one another, drawn in `style`, without captions."""
    for number, scene in enumerate(varied_scenes(count, seed), start=1):
        with replacing(folder / f"{number:04d}.png") as part:
            draw(scene, style, sizes[number % len(sizes)]).save(part, "PNG", optimize=True)


def varied_scenes(count: int, seed: int) -> list[Scene]:
    """`count` of many scenes, each time the one whose facts were shown least: all kinds and colours get a turn."""
    pool, used, chosen = scenes(40 * count, seed), Counter[str](), list[Scene]()
    for _ in range(count):
        scene = min(pool, key=lambda s: sum(used[word] for word in _facts(s)) / len(_facts(s)))
        pool.remove(scene)
        chosen.append(scene)
        used.update(_facts(scene))
    return chosen


def _facts(scene: Scene) -> list[str]:
    """What the scene's picture has to show: a red thing is another fact than a red backdrop.

    And red alone is another fact than red beside green: of pictures chosen without that distinction one in forty-eight
    showed blue alone, and a LoRA of them drew blue things green.
    """
    number = len(scene.groups)
    groups = [
        (f"{g.kind} in {number}", f"{g.colour} in {number}", f"{g.size} size", f"{g.count} in {number}")
        for g in scene.groups
    ]
    return [*(fact for group in groups for fact in group), scene.backdrop, scene.relation]


def save_answers(file: Path, count: int, seed: int, *, held_out: bool) -> None:
    """Write a JSONL of `count` rows: the question as `instruction`, the answer as one JSON object as `output`."""
    asked = questions(count, seed, held_out=held_out)
    rows = [json.dumps({"instruction": question.prompt, "output": question.as_json()}) for question in asked]
    write_text(file, "\n".join(rows) + "\n")
