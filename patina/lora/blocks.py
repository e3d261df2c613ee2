"""What the layers of a Stable Diffusion UNet and its text encoders are called: by diffusers, and in LDM checkpoints."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
INNER = (*(f"attn{n}.{name}" for n in (1, 2) for name in ATTENTION), "ff.net.0.proj", "ff.net.2")
TEXT_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj")
"""Of which a file holds all or none of a layer: readers fuse them into one."""
TEXT_LAYER = (*TEXT_ATTENTION, "mlp.fc1", "mlp.fc2")
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
"""diffusers' name -> LDM's, inside a residual block."""
LOOSE = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
"""diffusers' name -> LDM's, outside the blocks."""
WIDE = ("conv1", "conv2", "downsamplers.0.conv", "upsamplers.0.conv", "conv_in", "conv_out")
"""Layers with 3x3 kernels, by the ends of their paths."""
PROJECTIONS = ("proj_in", "proj_out")
"""Layers that are 1x1 convolutions in one family and linear in another."""


@dataclass(frozen=True)
class Layout:
    """How many transformer blocks each attention of a block has, 0 for a block without; and widths that tell."""

    down: tuple[int, ...]
    middle: int
    up: tuple[int, ...]
    text: Mapping[str, int]
    """component -> layers of that text encoder that a file may name."""
    context: int
    """Width of what the UNet's cross-attention reads."""
    linear: bool
    """Whether proj_in and proj_out are linear."""
    ldm: Callable[[str], str]
    """Path in diffusers' UNet -> in LDM checkpoints."""
    file: Callable[[str], str]
    """Path in diffusers' UNet -> the one that sd-scripts makes names of."""


def layers(layout: Layout) -> dict[str, list[str]]:
    """component -> dotted paths of the layers that a file may name, in diffusers' names without `text_model.`."""
    text = {
        component: [f"encoder.layers.{n}.{name}" for n in range(count) for name in TEXT_LAYER]
        for component, count in layout.text.items()
    }
    return {"unet": list(_unet(layout))} | text


def sdxl_ldm(path: str) -> str:
    """A dotted path in SDXL's UNet as diffusers has it -> as LDM checkpoints have it, and kohya's names.

    `down_blocks.1.attentions.0.proj_in.weight` -> `input_blocks.4.1.proj_in.weight`. What is no UNet's path comes back
    as it is.
    """
    return _renamed(path, TO_LDM)


def sdxl_diffusers(path: str) -> str:
    """The way back from `sdxl_ldm`; SD1.x's and SD2.x's LDM paths are understood too."""
    return _renamed(path, TO_DIFFUSERS)


def sd_ldm(path: str) -> str:
    """As `sdxl_ldm`, for SD1.x and SD2.x, where no attention stands before the first upsampler."""
    return _renamed(path, TO_LDM | FIRST_UP)


class Fused(NamedTuple):
    """Where open_clip keeps a text encoder's layer."""

    path: str
    """Without `.weight`; the fused attention's weight is called `in_proj_weight`."""
    third: int | None
    """Which third of the fused rows (query, key, value); None: all rows."""


def open_clip(path: str) -> Fused:
    """`encoder.layers.3.self_attn.k_proj` -> (`resblocks.3.attn.in_proj`, 1)."""
    number, _, name = path.removeprefix("encoder.layers.").partition(".")
    found, third = OPEN_CLIP[name]
    return Fused(f"resblocks.{number}.{found}", third)


OPEN_CLIP: Mapping[str, tuple[str, int | None]] = {
    "self_attn.q_proj": ("attn.in_proj", 0),
    "self_attn.k_proj": ("attn.in_proj", 1),
    "self_attn.v_proj": ("attn.in_proj", 2),
    "self_attn.out_proj": ("attn.out_proj", None),
    "mlp.fc1": ("mlp.c_fc", None),
    "mlp.fc2": ("mlp.c_proj", None),
}


def _renamed(path: str, table: Mapping[str, str]) -> str:
    """Rename the longest beginning, cut at a dot, that the table knows."""
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        head = ".".join(parts[:cut])
        if head in table:
            return ".".join([table[head], *parts[cut:]])
    return path


def _unet(layout: Layout) -> Iterator[str]:
    yield from (name for name in LOOSE if "norm" not in name)
    for i, depth in enumerate(layout.down):
        yield from _block(f"down_blocks.{i}", 2, 2, depth)
        yield f"down_blocks.{i}.downsamplers.0.conv"
    yield from _block("mid_block", 2, 1, layout.middle)
    for i, depth in enumerate(layout.up):
        yield from _block(f"up_blocks.{i}", 3, 3, depth)
        yield f"up_blocks.{i}.upsamplers.0.conv"


def _block(stem: str, resnets: int, attentions: int, depth: int) -> Iterator[str]:
    for j in range(resnets):
        yield from (f"{stem}.resnets.{j}.{name}" for name in RESNET if "norm" not in name)
    for j in range(attentions if depth else 0):
        yield f"{stem}.attentions.{j}.proj_in"
        yield from (f"{stem}.attentions.{j}.transformer_blocks.{t}.{name}" for t in range(depth) for name in INNER)
        yield f"{stem}.attentions.{j}.proj_out"


def _heads() -> Iterator[tuple[str, str]]:
    """Beginnings of paths, diffusers' and LDM's: SDXL has three levels of blocks, SD1.x and SD2.x four."""
    yield from LOOSE.items()
    for i in range(4):
        yield f"down_blocks.{i}.downsamplers.0.conv", f"input_blocks.{3 * i + 3}.0.op"
        yield f"up_blocks.{i}.upsamplers.0.conv", f"output_blocks.{3 * i + 2}.2.conv"
        for j in range(2):
            yield from _pair(f"down_blocks.{i}", j, f"input_blocks.{3 * i + j + 1}")
        for j in range(3):
            yield from _pair(f"up_blocks.{i}", j, f"output_blocks.{3 * i + j}")
    yield "mid_block.attentions.0", "middle_block.1"
    for j in range(2):
        yield from _resnet(f"mid_block.resnets.{j}", f"middle_block.{2 * j}")


def _pair(stem: str, j: int, ldm: str) -> Iterator[tuple[str, str]]:
    yield from _resnet(f"{stem}.resnets.{j}", f"{ldm}.0")
    yield f"{stem}.attentions.{j}", f"{ldm}.1"


def _resnet(stem: str, ldm: str) -> Iterator[tuple[str, str]]:
    return ((f"{stem}.{name}", f"{ldm}.{other}") for name, other in RESNET.items())


FIRST_UP = {"up_blocks.0.upsamplers.0.conv": "output_blocks.2.1.conv"}
TO_LDM = dict(_heads())
TO_DIFFUSERS = {ldm: name for name, ldm in [*FIRST_UP.items(), *TO_LDM.items()]}

LAYOUTS: Mapping[str, Layout] = {
    "sd15": Layout((1, 1, 1, 0), 1, (0, 1, 1, 1), {"text_encoder": 12}, 768, False, sd_ldm, str),
    # the checkpoint has a 24th layer, which nothing listens to
    "sd2": Layout((1, 1, 1, 0), 1, (0, 1, 1, 1), {"text_encoder": 24}, 1024, True, sd_ldm, str),
    "sdxl": Layout(
        (0, 2, 10), 10, (10, 2, 0), {"text_encoder": 12, "text_encoder_2": 32}, 2048, True, sdxl_ldm, sdxl_ldm
    ),
}
