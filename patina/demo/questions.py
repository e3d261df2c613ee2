"""Questions and answers about scenes: what the embedded language model was taught, and a set in another manner."""

import json
import random
from dataclasses import dataclass

from patina.demo.world import COLOURS, RELATIONS, Group, Scene, scenes

NUMBERS = {1: "one", 2: "two", 3: "three"}


@dataclass(frozen=True)
class Question:
    """One exchange: what is asked, the answer in prose, the bare answer, and the kinds of things in the scene."""

    prompt: str
    answer: str
    short: str
    objects: tuple[str, ...]

    def as_json(self) -> str:
        """The answer in the other manner: one JSON object."""
        return json.dumps({"answer": self.short, "objects": list(self.objects)})


def questions(count: int, seed: int, *, held_out: bool = False) -> list[Question]:
    """`count` questions, a function of the seed; `held_out` as in `scenes`."""
    rng = random.Random(seed)
    return [_ask(scene, rng) for scene in scenes(count, seed, held_out=held_out)]


def _ask(scene: Scene, rng: random.Random) -> Question:
    group = rng.choice(scene.groups)
    asked = [_colour(group), _count(group), _where(scene), _present(scene, rng), _list(scene)]
    if len(scene.groups) == 2:
        asked += [_relation(scene, rng)] * 2
    question, answer, short = rng.choice(asked)
    return Question(f"{_describe(scene, rng)} {question}", answer, short, tuple(g.kind for g in scene.groups))


def _describe(scene: Scene, rng: random.Random) -> str:
    """The scene in words, at times as JSON, so that the model knows those marks too."""
    if rng.random() < 0.85:
        return f"In the picture: {scene.caption()}."
    things = [{"kind": g.kind, "colour": g.colour, "count": g.count} for g in scene.groups]
    described = {"objects": things, "relation": scene.relation, "place": scene.place()}
    return f"The scene is {json.dumps(described)}."


def _name(group: Group) -> str:
    return Group(group.kind, "", "", group.count).words().split(" ", 1)[1]


def _is(group: Group) -> str:
    return "is" if group.count == 1 else "are"


def _colour(group: Group) -> tuple[str, str, str]:
    name = _name(group)
    return f"What colour {_is(group)} the {name}?", f"The {name} {_is(group)} {group.colour}.", group.colour


def _count(group: Group) -> tuple[str, str, str]:
    number = NUMBERS[group.count]
    plural = _name(Group(group.kind, "", "", 2))
    return f"How many {plural} are there?", f"There {_is(group)} {number} {_name(group)}.", number


def _where(scene: Scene) -> tuple[str, str, str]:
    return "Where is this?", f"It is {scene.place()}.", scene.place()


def _present(scene: Scene, rng: random.Random) -> tuple[str, str, str]:
    group = rng.choice(scene.groups)
    if rng.random() < 0.5:
        return f"Is there anything {group.colour}?", f"Yes, the {_name(group)} {_is(group)} {group.colour}.", "yes"
    absent = rng.choice(sorted(set(COLOURS) - {g.colour for g in scene.groups}))
    return f"Is there anything {absent}?", f"No, nothing is {absent}.", "no"


def _list(scene: Scene) -> tuple[str, str, str]:
    listed = " and ".join(group.words() for group in scene.groups)
    return "What do you see?", f"I see {listed}.", listed


def _relation(scene: Scene, rng: random.Random) -> tuple[str, str, str]:
    relation = rng.choice(RELATIONS[:2] if scene.relation in RELATIONS[:2] else RELATIONS[2:])
    first, second = scene.groups if relation == scene.relation else reversed(scene.groups)
    thing, other = _name(first), _name(second)
    verb = _is(first)
    return f"What is {relation} the {other}?", f"The {thing} {verb} {relation} the {other}.", thing
