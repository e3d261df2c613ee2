"""A frozen UNet's blocks on kernels of our own: the same weights under the same names, fewer passes over memory.

What is not of the plain sort that Stable Diffusion's UNets are made of stays diffusers' own.
"""

# What diffusers' blocks hold is annotated as any module or none: not ours to mend.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportOptionalSubscript=false, reportOptionalCall=false

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from patina.engine.fused.linear import project
from patina.engine.fused.ops import LAST, add_norm, gated, group_norm


def fuse(denoiser: nn.Module) -> int:
    """Put blocks of ours in the place of diffusers' plain ones; returns how many.

    Frozen convolutions get their weights in channels_last. What is computed, and the names of all weights, stay.
    """
    for conv in denoiser.modules():
        if type(conv) is nn.Conv2d and not conv.weight.requires_grad:
            conv.weight.data = conv.weight.data.contiguous(memory_format=LAST)
    made = [_replace(parent, name, block) for parent, name, block in _blocks(denoiser)]
    norm, act = getattr(denoiser, "conv_norm_out", None), getattr(denoiser, "conv_act", None)
    if type(norm) is nn.GroupNorm and type(act) is nn.SiLU:
        denoiser.conv_norm_out, denoiser.conv_act = Norm(norm, silu=True), nn.Identity()
    return sum(made)


def recomputed(denoiser: nn.Module) -> list[nn.Module]:
    """The blocks, ours or diffusers', that gradient checkpointing computes again."""
    kinds = (ResnetBlock2D, BasicTransformerBlock, ResBlock, Block)
    return [part for part in denoiser.modules() if isinstance(part, kinds)]


def _blocks(denoiser: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    return [
        (parent, name, block)
        for parent in denoiser.modules()
        for name, block in parent.named_children()
        if type(block) in FUSED
    ]


def _replace(parent: nn.Module, name: str, block: nn.Module) -> bool:
    made = FUSED[type(block)](block)
    if made is not None:
        setattr(parent, name, made.train(block.training))
    return made is not None


class Norm(nn.Module):
    """A frozen `nn.GroupNorm`, with SiLU behind it or not."""

    def __init__(self, norm: nn.GroupNorm, silu: bool) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.groups, self.eps, self.silu = norm.num_groups, norm.eps, silu

    def forward(self, x: Tensor) -> Tensor:
        """[N,C,h,w]"""
        return self.keeping(x)[0]

    def keeping(self, x: Tensor, shift: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`norm(x + shift)`, and x for other uses; shift [N,C]."""
        return group_norm(x, shift, self.weight, self.bias, self.groups, self.eps, self.silu)


class ResBlock(nn.Module):
    """diffusers' `ResnetBlock2D`."""

    def __init__(self, block: ResnetBlock2D) -> None:
        super().__init__()
        self.norm1, self.norm2 = Norm(block.norm1, silu=True), Norm(block.norm2, silu=True)
        self.conv1, self.conv2, self.conv_shortcut = block.conv1, block.conv2, block.conv_shortcut
        self.time_emb_proj, self.scale = block.time_emb_proj, block.output_scale_factor

    @staticmethod
    def of(block: ResnetBlock2D) -> nn.Module | None:
        """None for one that resizes, drops, or is told of the time in another way."""
        plain = not (block.up or block.down or block.dropout.p or block.skip_time_act)
        plain = plain and block.time_embedding_norm == "default" and block.time_emb_proj is not None
        plain = plain and type(block.nonlinearity) is nn.SiLU and _is_frozen(block.norm1, block.norm2)
        return ResBlock(block) if plain else None

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        """x [N,C,h,w], temb [N,T]."""
        h, x = self.norm1.keeping(x)
        shift = self.time_emb_proj(F.silu(temb))
        h, _ = self.norm2.keeping(self.conv1(h), shift)
        h = self.conv2(h)
        x = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return x + h if self.scale == 1 else (x + h) / self.scale


class Spatial(nn.Module):
    """diffusers' `Transformer2DModel` over pictures."""

    def __init__(self, block: Transformer2DModel) -> None:
        super().__init__()
        self.norm = Norm(block.norm, silu=False)
        self.proj_in, self.transformer_blocks, self.proj_out = block.proj_in, block.transformer_blocks, block.proj_out
        # diffusers' switch, by its names
        self.gradient_checkpointing = block.gradient_checkpointing
        self._gradient_checkpointing_func: Any = getattr(block, "_gradient_checkpointing_func", None)

    @staticmethod
    def of(block: Transformer2DModel) -> nn.Module | None:
        """None for one over patches or vectors."""
        return Spatial(block) if block.is_input_continuous and _is_frozen(block.norm) else None

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **said: Any) -> tuple[Tensor]:
        """[N,C,h,w] and the text [N,n,D], as diffusers calls it; of what else it might say, nothing is taken."""
        assert not said.pop("return_dict", True)
        assert not any(value is not None and value != {} for value in said.values()), f"not for {said}"
        h, x = self.norm.keeping(hidden_states)
        n, c, height, width = h.shape
        (rows,) = project([self.proj_in], h.permute(0, 2, 3, 1).reshape(n, height * width, c))
        for block in self.transformer_blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                rows = self._gradient_checkpointing_func(block, rows, None, encoder_hidden_states)
            else:
                rows = block(rows, None, encoder_hidden_states)
        (rows,) = project([self.proj_out], rows)
        return (rows.view(n, height, width, c).permute(0, 3, 1, 2) + x,)


class Block(nn.Module):
    """diffusers' `BasicTransformerBlock` with layer norms."""

    def __init__(self, block: BasicTransformerBlock) -> None:
        super().__init__()
        self.norm1, self.attn1 = block.norm1, block.attn1
        self.norm2, self.attn2 = block.norm2, block.attn2
        self.norm3, self.ff = block.norm3, block.ff

    @staticmethod
    def of(block: BasicTransformerBlock) -> nn.Module | None:
        """None for one with other norms, attention of another kind, dropout, or a gate for boxes."""
        plain = block.norm_type == "layer_norm" and block.pos_embed is None and not block.only_cross_attention
        plain = plain and block._chunk_size is None and not hasattr(block, "fuser")
        plain = plain and _attends(block.attn1, across=False) and _attends(block.attn2, across=True)
        plain = plain and _is_gated(block.ff) and _is_frozen(block.norm1, block.norm2, block.norm3)
        return Block(block) if plain else None

    def forward(self, x: Tensor, mask: None = None, text: Tensor | None = None) -> Tensor:
        """Rows x [N,n,C] and the text [N,m,D]."""
        assert mask is None
        assert text is not None
        y, x = add_norm(self.norm1, x, None)
        y, x = add_norm(self.norm2, x, attend(self.attn1, y, y))
        y, x = add_norm(self.norm3, x, attend(self.attn2, y, text))
        (y,) = project([self.ff.net[0].proj], y)
        (y,) = project([self.ff.net[2]], gated(y))
        return x + y


def attend(attn: Attention, x: Tensor, to: Tensor) -> Tensor:
    """Rows x [N,n,C] attending to rows `to`, as AttnProcessor2_0 has it."""
    if to is x:
        q, k, v = project([attn.to_q, attn.to_k, attn.to_v], x)
    else:
        (q,) = project([attn.to_q], x)
        k, v = project([attn.to_k, attn.to_v], to)
    q, k, v = (part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    (y,) = project([attn.to_out[0]], y)
    return y


def _attends(attn: Attention | None, *, across: bool) -> bool:
    if attn is None or attn.is_cross_attention != across or type(attn.processor) is not AttnProcessor2_0:
        return False
    norms = (attn.group_norm, attn.spatial_norm, attn.norm_q, attn.norm_k, attn.norm_cross)
    added = attn.added_kv_proj_dim or attn.residual_connection or attn.fused_projections
    plain = attn.rescale_output_factor == 1 and attn.to_out is not None and not attn.to_out[1].p
    return plain and not added and all(norm is None for norm in norms)


def _is_gated(ff: nn.Module) -> bool:
    net = ff.net
    return len(net) == 3 and type(net[0]) is GEGLU and not net[1].p


def _is_frozen(*norms: nn.Module) -> bool:
    """With weights, none of which learns: the kernels have no gradient by them."""
    weights = [part for norm in norms for part in (norm.weight, norm.bias)]
    return all(part is not None and not part.requires_grad for part in weights)


FUSED: Mapping[type[nn.Module], Callable[[Any], nn.Module | None]] = {
    ResnetBlock2D: ResBlock.of,
    Transformer2DModel: Spatial.of,
    BasicTransformerBlock: Block.of,
}
