"""From the `network:` section to what each layer gets: its size, and the learning rate of its weights."""

import math
from collections.abc import Mapping

from torch import nn

from patina.confignetwork import Network
from patina.engine.flat import Groups
from patina.lora.inject import trained
from patina.lora.patterns import number_at, parse, refuse_unused
from patina.lora.recipe import Recipe, Size


def recipe(network: Network, component: str, rank: int, alpha: float | None) -> Recipe:
    """How the layers of one component are adapted; `rank` and `alpha` are the run's own, alpha None for the rank."""
    ranks, alphas = parse(network.rank_pattern), parse(network.alpha_pattern)
    conv_rank, conv_alpha = conv_size(network, rank, alpha)

    def size(path: str, layer: nn.Module) -> Size:
        kernel = isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1)
        own_rank = number_at(ranks, component, path) or (conv_rank if kernel else rank)
        own_alpha = number_at(alphas, component, path) or (conv_alpha if kernel else alpha or rank)
        return Size(int(own_rank), own_alpha / (math.sqrt(own_rank) if network.rslora else own_rank))

    return Recipe(
        algo=network.algo,
        factor=network.factor or -1,
        init=network.init,
        dropout=network.dropout,
        rank_dropout=network.rank_dropout,
        module_dropout=network.module_dropout,
        size=size,
    )


def conv_size(network: Network, rank: int, alpha: float | None) -> tuple[int, float]:
    """Rank and alpha in 3x3 convolutions; where neither is given, those of the other layers."""
    if network.conv_rank is None:
        return rank, network.conv_alpha or alpha or rank
    return network.conv_rank, network.conv_alpha or network.conv_rank


def file_alpha(network: Network, rank: int, alpha: float) -> float:
    """The one alpha in the file: rsLoRA's scale is that of a LoRA with sqrt(rank) times the alpha."""
    return alpha * math.sqrt(rank) if network.rslora else alpha


def file_rank(network: Network, rank: int) -> int:
    """The common rank in the file: twice the trained one where the start is taken off again."""
    if network.dora_export == "baked":
        return network.dora_rank or rank
    return 2 * rank if network.init in ("pissa", "olora") else rank


def groups(network: Network, modules: Mapping[str, nn.Module], peaks: Mapping[str, float]) -> Groups:
    """Which weights learn at which rate: `peaks` are the components' own, which patterns and LoRA+ change.

    LoRA+ (Hayou et al. 2024, arXiv:2402.12354) lets B learn `loraplus_ratio` times as fast as A. Raises PatinaError for
    a pattern of the section that fits no layer.
    """
    patterns = parse(network.lr_pattern)
    weights = [
        (component, path, name)
        for component, module in modules.items()
        for path, parts in trained(module).items()
        for name in parts
    ]
    places = list(dict.fromkeys((component, path) for component, path, _ in weights))
    for key in ("rank_pattern", "alpha_pattern", "lr_pattern"):
        refuse_unused(key, parse(getattr(network, key)), places)
    rates = {}
    for component, path, name in weights:
        own = number_at(patterns, component, path)
        faster = (network.loraplus_ratio or 1.0) if name == "lora_B" else 1.0
        rates[component, path, name] = (peaks[component] if own is None else own) * faster
    return Groups.of(rates, peaks)
