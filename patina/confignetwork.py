"""The `network:` section: by which algorithm the layers are adapted, of what size, and how they start and train."""

from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from patina.configtypes import Count, Positive, Section, Texts
from patina.lora.patterns import NotAPattern, parse

Share = Annotated[float, Field(ge=0, lt=1)]
LORAS = ("lora", "locon", "dora")


class Network(Section):
    """Expert settings of what is trained."""

    algo: Literal["lora", "locon", "loha", "lokr", "dora"] = "lora"
    """`lora`: every program reads it. `locon`: LoRA on the convolutions too, for textures. `loha`, `lokr`: more reach
    or a smaller file, read by WebUIs but not by diffusers. `dora`: LoRA that learns lengths apart, slower.
    Text mode has `lora` and, but for labels, `dora`."""
    conv_rank: Annotated[Count | None, Field(examples=[4])] = None
    """Rank in 3x3 convolutions. Empty: `lora_rank` for `locon`, and no convolutions for the others; given, `loha`,
    `lokr` and `dora` adapt convolutions too."""
    conv_alpha: Annotated[Positive | None, Field(examples=[2.0])] = None
    """Alpha in 3x3 convolutions. Empty: `conv_rank`, or where that is empty too the other layers' alpha."""
    factor: Annotated[int | None, Field(ge=2, examples=[8])] = None
    """`lokr`: what the edge of its smaller matrix should be; smaller makes a bigger file. Empty: as near to square as
    each layer allows."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead of alpha / rank, so that high ranks learn as fast as low ones."""
    rank_pattern: Annotated[Texts, Field(examples=[("attn2=16", "IN0[0-3]=4")])] = ()
    """Other ranks for some layers, each `PATTERN=RANK`. A pattern is a block (IN00 to IN11, MID, OUT00 to OUT11, BASE
    for text encoders) or a part of a layer's path, as a regular expression. The first that fits counts."""
    alpha_pattern: Annotated[Texts, Field(examples=[("MID=8",)])] = ()
    """Other alphas for some layers, each `PATTERN=ALPHA`."""
    lr_pattern: Annotated[Texts, Field(examples=[("BASE=2e-5", "OUT.*=3e-4")])] = ()
    """Other peak learning rates for some layers, each `PATTERN=RATE`; 0 leaves them as they start."""
    loraplus_ratio: Annotated[float | None, Field(ge=1, examples=[16.0])] = None
    """How much faster LoRA's second matrix learns than its first (LoRA+); 16 is usual, with a lower `learning_rate`.
    Empty: equally fast."""
    dropout: Share = 0.0
    """Share of a LoRA's inputs left out at random in each step, against overfitting; 0.1 is much."""
    rank_dropout: Share = 0.0
    """Share of the ranks left out at random in each step (`loha`, `lokr`: of a weight's rows)."""
    module_dropout: Share = 0.0
    """Share of the adapted layers left out at random in each step."""
    max_norm: Annotated[Positive | None, Field(examples=[1.0])] = None
    """Longest change (Frobenius norm) of each layer's weight; what grows beyond is scaled back after each step. Empty:
    no limit."""
    init: Literal["kaiming", "gaussian", "pissa", "olora"] = "kaiming"
    """What LoRA's first matrix starts from: random numbers, evenly or normally spread, or the main directions of the
    layer's weight (`pissa`, `olora`), which learn faster and make a file of twice the rank."""
    dora_export: Literal["native", "baked"] = "native"
    """`native`: right in A1111, Forge, ComfyUI, InvokeAI and SD.Next; diffusers cannot read it. `baked`: as a plain
    LoRA that all of them read, which leaves out what its rank cannot hold; the run says how much."""
    dora_rank: Annotated[Count | None, Field(examples=[64])] = None
    """Rank of a baked DoRA; higher leaves out less. Empty: `lora_rank`."""

    @property
    def convolutions(self) -> bool:
        """Whether convolutions are adapted beyond what `lora_target` names."""
        return self.algo == "locon" or self.conv_rank is not None

    @property
    def drops(self) -> bool:
        """Whether anything is left out at random."""
        return bool(self.dropout or self.rank_dropout or self.module_dropout)

    @property
    def halves(self) -> bool:
        """Whether a pass can be computed with half-precision copies of the factors: they alone are in it."""
        return self.algo in ("lora", "locon") and self.init in ("kaiming", "gaussian")


class NetworkRule(NamedTuple):
    """Something that keys of this section must satisfy together."""

    keys: tuple[str, ...]
    """The keys that decide it; the first is the one to complain about."""
    broken: Callable[[Network], str | None]
    """Problem and remedy, or None if all is well."""


def _conv_rank_unused(network: Network) -> str | None:
    if network.conv_rank is None or network.algo != "lora":
        return None
    return "is given, but algo lora adapts no convolutions; write network.algo: locon, or leave it out"


def _conv_alpha_unused(network: Network) -> str | None:
    if network.conv_alpha is None or network.convolutions:
        return None
    return "is given, but no convolutions are adapted; write network.conv_rank too, or leave it out"


def _factor_unused(network: Network) -> str | None:
    if network.factor is None or network.algo == "lokr":
        return None
    return "is for algo lokr alone; leave it out"


def _loraplus_unfit(network: Network) -> str | None:
    if network.loraplus_ratio is None or network.algo in LORAS:
        return None
    return f"has no meaning for {network.algo}, which has no two matrices; leave it out"


def _dropout_unfit(network: Network) -> str | None:
    if not network.dropout or network.algo in LORAS:
        return None
    return f"has no meaning for {network.algo}; write network.rank_dropout or network.module_dropout"


def _init_unfit(network: Network) -> str | None:
    if network.init in ("kaiming", "gaussian") or network.algo in ("lora", "locon"):
        return None
    return f"{network.init} is a start for algo lora and locon; write network.init: kaiming"


def _norm_unfit(network: Network) -> str | None:
    if network.max_norm is None or network.init in ("kaiming", "gaussian"):
        return None
    return f"cannot hold what init {network.init} starts with; leave it out, or write network.init: kaiming"


def _bake_unused(network: Network) -> str | None:
    if network.dora_rank is None or (network.algo == "dora" and network.dora_export == "baked"):
        return None
    return "is given, but nothing is baked; write network.algo: dora and network.dora_export: baked, or leave it out"


def _export_unused(network: Network) -> str | None:
    if network.dora_export == "native" or network.algo == "dora":
        return None
    return "baked is for algo dora alone; leave it out"


def _bad_patterns(patterns: Callable[[Network], tuple[str, ...]], whole: bool, least: float) -> Callable:
    def broken(network: Network) -> str | None:
        try:
            parse(patterns(network), whole, least)
        except NotAPattern as error:
            return str(error)
        return None

    return broken


NETWORK_RULES = (
    NetworkRule(("network.conv_rank", "network.algo"), _conv_rank_unused),
    NetworkRule(("network.conv_alpha", "network.conv_rank", "network.algo"), _conv_alpha_unused),
    NetworkRule(("network.factor", "network.algo"), _factor_unused),
    NetworkRule(("network.loraplus_ratio", "network.algo"), _loraplus_unfit),
    NetworkRule(("network.dropout", "network.algo"), _dropout_unfit),
    NetworkRule(("network.init", "network.algo"), _init_unfit),
    NetworkRule(("network.max_norm", "network.init"), _norm_unfit),
    NetworkRule(("network.dora_rank", "network.dora_export", "network.algo"), _bake_unused),
    NetworkRule(("network.dora_export", "network.algo"), _export_unused),
    NetworkRule(("network.rank_pattern",), _bad_patterns(lambda network: network.rank_pattern, True, 1)),
    NetworkRule(("network.alpha_pattern",), _bad_patterns(lambda network: network.alpha_pattern, False, 1e-6)),
    NetworkRule(("network.lr_pattern",), _bad_patterns(lambda network: network.lr_pattern, False, 0)),
)
