"""What one image family is: a row of facts and three functions; and how a run's `lora_target` narrows its layers."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from patina.errors import PatinaError

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from torch import Tensor

    from patina.clip import Reading
    from patina.objective import Objective

    Cond = Mapping[str, Tensor]
    Targets = Mapping[str, tuple[str, ...]]

FULL = "full"
"""The preset that names every layer a family can adapt; the other presets are subsets of it."""


@dataclass(frozen=True)
class Family:
    """One row of the table of families. Components are named as the attributes of the diffusers pipeline."""

    name: str
    pipeline: str
    """Name of the diffusers pipeline class that loads, samples and saves it."""
    denoiser: str
    """Component that predicts the noise."""
    text_encoders: tuple[str, ...]
    """Components that `listen` runs, in the order it runs them."""
    pipeline_options: Mapping[str, object]
    """What the pipeline class is given besides its components."""
    told_by: Mapping[str, object]
    """Entries of the denoiser's config that tell this family from others of the same pipeline class."""
    resolution: int
    """Side of the square pictures that the base was trained on, in pixels."""
    predicts: Mapping[str, int]
    """What bases of this family predict, the likeliest first -> side of the pictures that those were trained on."""
    objective: Callable[..., Objective]
    """(scheduler, min_snr_gamma=None) -> how latents are noised and what must be predicted."""
    targets: Mapping[str, Targets]
    """component -> preset (`full`, `attn`, `attn-mlp`) -> layers, each by the end of its dotted path."""
    convolutions: Mapping[str, tuple[str, ...]]
    """component -> what LoCon trains beyond `full`: layers of the blocks that are not attention."""
    prefix: Mapping[str, str]
    """component -> what its keys begin with in a LoRA file; the dotted path follows, its dots turned to underscores."""
    spelling: Mapping[str, Callable[[str], str]]
    """component -> (dotted path) -> the path that stands in a LoRA file; components left out are spelt as they are."""
    together: Mapping[str, tuple[str, ...]]
    """component -> sibling layers of one size, of which a file holds all or none (readers fuse them into one)."""
    metadata: Mapping[str, str]
    """The entries of a LoRA file's header that are the same for every file of this family."""
    velocity_metadata: Mapping[str, str]
    """Entries that are others where the base predicts velocity."""
    webui_version: str
    """What a web UI calls bases of this family (`sd version` in the JSON file beside a LoRA)."""
    trains_text: bool
    """Whether the text encoders are adapted where the config does not say."""
    tokens: Callable[[DiffusionPipeline, Sequence[str], Reading], Cond]
    """(pipe, captions, reading) -> what the text encoders are given, on the CPU, one row a caption."""
    listen: Callable[[DiffusionPipeline, Cond, Reading], Cond]
    """(pipe, tokens, reading) -> what the text encoders make of them; gradients flow, and nothing waits."""
    predict: Callable[[DiffusionPipeline, Tensor, Tensor, Cond], Tensor]
    """(pipe, noisy latents [B,C,h,w], timesteps [B], cond) -> the denoiser's output, in the latents' shape."""

    def encode(self, pipe: DiffusionPipeline, captions: Sequence[str], reading: Reading) -> Cond:
        """What the text encoders make of captions, one row a caption; gradients flow."""
        return self.listen(pipe, self.tokens(pipe, captions, reading), reading)


def narrow(family: Family, choice: str | Sequence[str], convolutions: bool = False) -> Targets:
    """The layers to adapt, component -> ends of dotted paths, for a preset's name or for a list of layer names.

    With `convolutions` a preset has those beyond it; a list is what is trained. A listed name is one of the `full`
    preset's or the convolutions' (`to_q`), or a longer path that ends in one (`attn2.to_k`). A component of which
    nothing is listed is left out. Raises PatinaError for an unknown preset or layer, naming the nearest.
    """
    beyond = {component: family.convolutions.get(component, ()) for component in family.targets}
    if isinstance(choice, str):
        presets = sorted({preset for table in family.targets.values() for preset in table})
        if choice not in presets:
            raise PatinaError(
                f"lora_target: there is no preset {choice!r} for {family.name}; write one of {', '.join(presets)}, "
                "or a list of layer names"
            )
        return {
            component: table[choice] + beyond[component] * convolutions for component, table in family.targets.items()
        }
    full = {component: table[FULL] + beyond[component] for component, table in family.targets.items()}
    _refuse_unknown(family, choice, tuple(known for ends in full.values() for known in ends))
    listed = {component: tuple(name for name in choice if ends_in(name, ends)) for component, ends in full.items()}
    return {component: names for component, names in listed.items() if names}


def ends_in(path: str, ends: Sequence[str]) -> bool:
    """Whether a dotted path is one of `ends`, or ends in one at a dot."""
    return any(path == end or path.endswith(f".{end}") for end in ends)


def _refuse_unknown(family: Family, names: Sequence[str], known: tuple[str, ...]) -> None:
    if not names:
        raise PatinaError("lora_target: the list is empty; name at least one layer, or write full")
    for name in names:
        if not ends_in(name, known):
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known
            raise PatinaError(
                f"lora_target: {family.name} has no layer {name!r} that LoRA can adapt; nearest: {', '.join(near)}"
            )
