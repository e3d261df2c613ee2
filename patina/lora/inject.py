"""Put an adapter on a frozen module through peft, and see its live weights."""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig, inject_adapter_in_model
from torch import Tensor, nn

from patina.errors import PatinaError
from patina.family import ends_in
from patina.lora import begin, dora, dropout
from patina.lora.forms import LORA, MAGNITUDE, PARTS, form_of
from patina.lora.recipe import ADAPTER, PLAIN, Carrier, Recipe, Size

PEFT_NAMES = {MAGNITUDE: "lora_magnitude_vector"}
"""What peft calls a part where it is not our word."""


@dataclass(frozen=True)
class Adapter:
    """One layer's live adapter: the layer's weight grows by scale * the product of the factors (see `forms`)."""

    weights: dict[str, nn.Parameter]
    """What is trained, fp32: the factors by name, and for DoRA the magnitude."""
    scale: float
    """alpha / rank, or alpha / sqrt(rank) for rsLoRA."""
    base: Tensor
    """The layer's own frozen weight."""
    start: dict[str, Tensor]
    """The factors at the start where the start's product is taken off again (PiSSA, OLoRA); else empty."""

    @property
    def A(self) -> nn.Parameter:
        """LoRA's [r,in], or [r,in,k,k] for a convolution."""
        return self.weights["lora_A"]

    @property
    def B(self) -> nn.Parameter:
        """LoRA's [out,r], or [out,r,1,1] for a convolution."""
        return self.weights["lora_B"]


def adapt(
    module: nn.Module, targets: Sequence[str], rank: int, alpha: float, seed: int, recipe: Recipe = PLAIN
) -> list[str]:
    """Freeze `module` in eval mode and add a trainable adapter to the layers whose paths end in one of `targets`.

    Returns the adapted layers' dotted paths in the module's order. `rank` and `alpha` are those of layers for which
    `recipe.size` knows no others. The weights are fp32 whatever the base's dtype, a function of (seed, path) and of
    the layer's own weight alone, and change nothing yet; the global random state is left as it was. Raises
    PatinaError when one of `targets` names no layer. A module can be adapted once.
    """
    assert not adapters(module), "this module carries an adapter already"
    paths = _match(module, targets)
    known = layers(module)
    sizes = {path: recipe.size(path, known[path]) or Size(rank, alpha / rank) for path in paths}
    module.requires_grad_(False)
    with torch.random.fork_rng(devices=()):
        inject_adapter_in_model(_config(recipe, sizes), module, ADAPTER)
        for path, size in sizes.items():
            _begin(module.get_submodule(path), size, recipe, seed, path)
    module.eval()
    return paths


def adapters(module: nn.Module) -> dict[str, Adapter]:
    """The live adapters by the adapted layer's path: what is changed in them is changed in the module."""
    return {path: _adapter(layer) for path, layer in module.named_modules() if isinstance(layer, Carrier)}


def train_whole(module: nn.Module, paths: Sequence[str]) -> None:
    """Have what is at `paths` of an adapted module learn all of its own weights, from those it holds, as fp32.

    Beside a LoRA, for what the base has not learnt: a new head. What is in a layer there must be numbers, not bits.
    """
    for path in paths:
        for layer in module.get_submodule(path).modules():
            assert not isinstance(layer, Carrier), f"{path} is trained whole or adapted, not both"
            for name, weight in list(layer.named_parameters(recurse=False)):
                setattr(layer, name, nn.Parameter(weight.detach().float()))


def trained(module: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """All that learns, by layer and name: the adapters' weights, then those of layers that are trained whole."""
    found = {path: adapter.weights for path, adapter in adapters(module).items()}
    inside = tuple(f"{path}." for path in found)
    for path, layer in module.named_modules():
        own = {name: weight for name, weight in layer.named_parameters(recurse=False) if weight.requires_grad}
        if own and path not in found and not path.startswith(inside):
            found[path] = own
    return found


def layers(module: nn.Module) -> dict[str, nn.Module]:
    """The layers that adapters can go on, linear and 2-D convolution, by path; the same before and after `adapt`."""
    carriers = {path: layer for path, layer in module.named_modules() if isinstance(layer, Carrier)}
    inside = tuple(f"{path}." for path in carriers)
    return {
        path: layer
        for path, layer in module.named_modules()
        if path in carriers or (isinstance(layer, nn.Linear | nn.Conv2d) and not path.startswith(inside))
    }


def state(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The weights of all components, `component.path.lora_A`, `.lora_B`, ...; detached, sharing memory.

    Where a start is taken off again, it is in it too (`component.path.start.lora_A`, ...).
    """
    found = {}
    for component, module in modules.items():
        live = adapters(module)
        for path, weights in trained(module).items():
            start = live[path].start if path in live else {}
            parts = weights | {f"start.{name}": weight for name, weight in start.items()}
            found |= {f"{component}.{path}.{name}": weight.detach() for name, weight in parts.items()}
    return found


def load_state(modules: Mapping[str, nn.Module], saved: Mapping[str, Tensor]) -> None:
    """Copy what `state` gave back into the live weights.

    Raises PatinaError, and changes nothing, when names or shapes differ from those of the live weights.
    """
    live = state(modules)
    unlike = sorted(live.keys() ^ saved.keys()) or [key for key in live if live[key].shape != saved[key].shape]
    if unlike:
        raise PatinaError(
            f"the saved LoRA does not fit this run: {len(unlike)} tensors differ, first {unlike[0]}; "
            "resume with the lora_rank, lora_target and network it was saved with"
        )
    for key, weight in live.items():
        weight.copy_(saved[key])


def _config(recipe: Recipe, sizes: Mapping[str, Size]) -> PeftConfig:
    """peft's config for these layers; peft's alpha is left at its default, `_begin` sets what it amounts to."""
    ranks: dict[int, list[str]] = {}
    for path, size in sizes.items():
        ranks.setdefault(size.rank, []).append(re.escape(path))
    target = "|".join(re.escape(path) for path in sizes)
    return ALGORITHMS[recipe.algo](recipe, target, {"|".join(paths): rank for rank, paths in ranks.items()})


def _lora(recipe: Recipe, target: str, ranks: dict[str, int]) -> PeftConfig:
    return LoraConfig(target_modules=target, rank_pattern=ranks, lora_dropout=recipe.dropout)


def _loha(recipe: Recipe, target: str, ranks: dict[str, int]) -> PeftConfig:
    return LoHaConfig(
        target_modules=target,
        rank_pattern=ranks,
        rank_dropout=recipe.rank_dropout,
        module_dropout=recipe.module_dropout,
    )


def _lokr(recipe: Recipe, target: str, ranks: dict[str, int]) -> PeftConfig:
    return LoKrConfig(
        target_modules=target,
        rank_pattern=ranks,
        rank_dropout=recipe.rank_dropout,
        module_dropout=recipe.module_dropout,
        decompose_factor=recipe.factor,
    )


ALGORITHMS: Mapping[str, Callable[[Recipe, str, dict[str, int]], PeftConfig]] = {
    "lora": _lora,
    "locon": _lora,
    "dora": _lora,
    "loha": _loha,
    "lokr": _lokr,
}
"""How each algorithm is put on: (recipe, pattern of paths, pattern of paths -> rank) -> peft's config."""


LENGTHS = {"columns": dora.scale_columns, "rows": dora.scale_rows}


def _begin(layer: nn.Module, size: Size, recipe: Recipe, seed: int, path: str) -> None:
    """Draw a new layer's weights, set its scale, and add what peft has not: DoRA's lengths, LoRA's dropouts."""
    assert isinstance(layer, Carrier)
    weights = _parts(layer, ADAPTER)
    scaled = form_of(weights).rank in weights
    layer.scaling[ADAPTER] = size.scale if scaled else 1.0
    begin.draw(layer, weights, recipe.init, seed, path)
    if recipe.algo == "dora":
        LENGTHS[recipe.lengths](layer)
    dropout.attach(layer, recipe, is_lora=form_of(weights) is LORA)


def _adapter(layer: Carrier) -> Adapter:
    weight = layer.get_base_layer().weight
    assert isinstance(weight, Tensor)
    fixed = {name: part.detach() for name, part in _parts(layer, begin.FIXED).items()}
    return Adapter(_parts(layer, ADAPTER), layer.scaling[ADAPTER], weight, fixed)


def _parts(layer: Carrier, adapter: str) -> dict[str, nn.Parameter]:
    """A peft layer's tensors of one adapter by our names; peft holds them as parameters or as layers of their own."""
    held = {name: getattr(layer, PEFT_NAMES.get(name, name), {}) for name in PARTS}
    found = {name: holder[adapter] for name, holder in held.items() if adapter in holder}
    return {name: part if isinstance(part, nn.Parameter) else part.weight for name, part in found.items()}


def _match(module: nn.Module, targets: Sequence[str]) -> list[str]:
    known = list(layers(module))
    for target in targets:
        if not any(ends_in(path, (target,)) for path in known):
            raise PatinaError(_no_layer(module, target, known))
    return [path for path in known if ends_in(path, targets)]


def _no_layer(module: nn.Module, target: str, known: Sequence[str]) -> str:
    """`to_out` is near `to_out.0`, `fc` near `mlp.fc1`: compare with the last one, two and three parts of paths."""
    ends = {".".join(path.split(".")[-parts:]) for path in known for parts in (1, 2, 3)}
    names = sorted(end for end in ends if not end[0].isdigit())
    near = difflib.get_close_matches(target, names, n=3, cutoff=0.3) or names[:8]
    return f"LoRA target {target!r} names no layer of this {type(module).__name__}; nearest: {', '.join(near)}"
