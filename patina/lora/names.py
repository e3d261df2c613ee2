"""What each layer is called in a LoRA file, and which layer a name in a file stands for (kohya's spelling)."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from patina.family import FULL, Family, ends_in
from patina.lora.forms import PARTS

DOWN, UP, ALPHA = "lora_down.weight", "lora_up.weight", "alpha"
"""A plain LoRA's three tensors, each after the layer's name and the key's first dot."""
IN_FILE = {name: name for name in PARTS} | {"lora_A": DOWN, "lora_B": UP}
"""Our name of a layer's tensor -> its name in a file."""


class Place(NamedTuple):
    """A layer: which component it belongs to and its dotted path there."""

    component: str
    path: str


def by_place(state: Mapping[str, Tensor]) -> dict[Place, dict[str, Tensor]]:
    """Weights named `component.path.part` -> layer -> part -> tensor."""
    found: dict[Place, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        stem, _, part = key.rpartition(".")
        component, _, path = stem.partition(".")
        found.setdefault(Place(component, path), {})[part] = tensor
    return found


def underscored(prefix: str, path: str) -> str:
    """A layer's name in a file: its component's prefix, then its path with the dots turned to underscores."""
    return prefix + path.replace(".", "_")


def file_key(family: Family, place: Place) -> str:
    """A layer's name in a file of this family, whose grammar may spell the path in another way than diffusers."""
    spell = family.spelling.get(place.component, str)
    return underscored(family.prefix[place.component], spell(place.path))


def module_names(family: Family, modules: Mapping[str, nn.Module]) -> dict[str, Place]:
    """Every layer name that a file of this family may hold -> the layer; the way back from `file_key`.

    Underscores occur inside paths too, so the way back is a table made from the modules, adapted or not.
    """
    from patina.lora.inject import layers  # peft takes seconds to import, and who only reads files needs none of it

    places = [
        Place(component, path)
        for component, module in modules.items()
        for path in layers(module)
        if ends_in(path, (*family.targets[component][FULL], *family.convolutions.get(component, ())))
    ]
    names = {file_key(family, place): place for place in places}
    assert len(names) == len(places), "two layers have one name in the file"
    return names


def siblings(family: Family, place: Place) -> list[Place]:
    """The layers that a file must hold when it holds `place`, itself among them (see `Family.together`)."""
    for end in family.together.get(place.component, ()):
        if ends_in(place.path, (end,)):
            stem = place.path.removesuffix(end)
            return [Place(place.component, stem + other) for other in family.together[place.component]]
    return [place]
