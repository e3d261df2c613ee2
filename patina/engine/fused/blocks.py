"""A frozen UNet's blocks on kernels of our own: the same weights under the same names, fewer passes over memory."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from patina.engine.fused.groupnorm import LAST, GroupNorm
from patina.engine.fused.linear import project
from patina.engine.fused.rows import AddAll, AddNorm, Gated


def fuse(denoiser: nn.Module) -> None:
    """Put blocks of ours in the place of diffusers', wherever they are of the plain sort."""
    for conv in denoiser.modules():
        if type(conv) is nn.Conv2d and not conv.weight.requires_grad:
            conv.weight.data = conv.weight.data.contiguous(memory_format=LAST)
    for parent in list(denoiser.modules()):
        for name, block in list(parent.named_children()):
            if type(block) in FUSED and (made := FUSED[type(block)](block)):
                setattr(parent, name, made)
    if type(denoiser.conv_norm_out) is nn.GroupNorm and type(denoiser.conv_act) is nn.SiLU:
        denoiser.conv_norm_out, denoiser.conv_act = Norm(denoiser.conv_norm_out, silu=True), nn.Identity()


class Norm(nn.Module):
    """A frozen `nn.GroupNorm`, with SiLU behind it or not."""

    def __init__(self, norm: nn.GroupNorm, silu: bool) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.groups, self.eps, self.silu = norm.num_groups, norm.eps, silu

    def forward(self, x: Tensor) -> Tensor:
        return self.keeping(x)[0]

    def keeping(self, x: Tensor, shift: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`norm(x + shift)`, and x for other uses; shift [N,C]."""
        x = x.contiguous(memory_format=LAST)
        return GroupNorm.apply(x, shift, self.weight, self.bias, self.groups, self.eps, self.silu)


class ResBlock(nn.Module):
    """diffusers' `ResnetBlock2D`."""

    def __init__(self, block: ResnetBlock2D) -> None:
        super().__init__()
        self.norm1, self.norm2 = Norm(block.norm1, silu=True), Norm(block.norm2, silu=True)
        self.conv1, self.conv2, self.conv_shortcut = block.conv1, block.conv2, block.conv_shortcut
        self.time_emb_proj, self.scale = block.time_emb_proj, 1 / block.output_scale_factor

    @staticmethod
    def of(block: ResnetBlock2D) -> nn.Module | None:
        plain = not (block.up or block.down or block.dropout.p or block.skip_time_act)
        plain = plain and block.time_embedding_norm == "default" and type(block.nonlinearity) is nn.SiLU
        return ResBlock(block) if plain and block.time_emb_proj is not None else None

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h, x = self.norm1.keeping(x)
        h, bias = convolved(self.conv1, h)
        shift = self.time_emb_proj(F.silu(temb))
        h, _ = self.norm2.keeping(h, shift if bias is None else shift + bias)
        h, bias = convolved(self.conv2, h)
        if self.conv_shortcut is not None:
            x, more = convolved(self.conv_shortcut, x)
            bias = more if bias is None else bias if more is None else bias + more
        if bias is None:
            return (x + h) * self.scale
        return AddAll.apply(x, h, bias, self.scale)


class Spatial(nn.Module):
    """diffusers' `Transformer2DModel` over pictures."""

    def __init__(self, block: Transformer2DModel) -> None:
        super().__init__()
        self.norm = Norm(block.norm, silu=False)
        self.proj_in, self.transformer_blocks, self.proj_out = block.proj_in, block.transformer_blocks, block.proj_out
        self.gradient_checkpointing = block.gradient_checkpointing
        self._gradient_checkpointing_func: Callable[..., Tensor] | None = getattr(
            block, "_gradient_checkpointing_func", None
        )

    @staticmethod
    def of(block: Transformer2DModel) -> nn.Module | None:
        return Spatial(block) if block.is_input_continuous else None

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        timestep: Tensor | None = None,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        class_labels: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        attention_mask: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> tuple[Tensor]:
        assert attention_mask is None
        assert encoder_attention_mask is None
        assert not return_dict
        h, x = self.norm.keeping(hidden_states)
        n, c, height, width = h.shape
        (rows,) = project([self.proj_in], h.permute(0, 2, 3, 1).view(n, height * width, c))
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
        plain = block.norm_type == "layer_norm" and block.pos_embed is None and not block.only_cross_attention
        plain = plain and block.attn2 is not None and block.attn2.is_cross_attention
        plain = plain and type(block.ff.net[0]).__name__ == "GEGLU"
        return Block(block) if plain else None

    def forward(self, x: Tensor, mask: None = None, text: Tensor | None = None) -> Tensor:
        y, x = add_norm(self.norm1, x, None)
        y, x = add_norm(self.norm2, x, attend(self.attn1, y, y))
        y, x = add_norm(self.norm3, x, attend(self.attn2, y, text))
        (y,) = project([self.ff.net[0].proj], y)
        (y,) = project([self.ff.net[2]], Gated.apply(y))
        return x + y


def add_norm(norm: nn.LayerNorm, a: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor]:
    return AddNorm.apply(a, b, norm.weight, norm.bias, norm.eps)


def attend(attn: Attention, x: Tensor, to: Tensor) -> Tensor:
    """Rows x [N,n,C] attending to rows `to`."""
    if to is x:
        q, k, v = project([attn.to_q, attn.to_k, attn.to_v], x)
    else:
        (q,) = project([attn.to_q], x)
        k, v = project([attn.to_k, attn.to_v], to)
    q, k, v = (part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    (y,) = project([attn.to_out[0]], y)
    return y


class Convolved(torch.autograd.Function):
    """A frozen convolution, for whose backward pass nothing is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: Any, padding: Any) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.told = (x.shape, stride, padding)
        return F.conv2d(x, weight, None, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        shape, stride, padding = ctx.told
        dx = torch.nn.grad.conv2d_input(shape, weight, dy.contiguous(memory_format=LAST), stride, padding)
        return dx, None, None, None


def convolved(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """x through a convolution, and the bias that has still to be added."""
    if type(layer) is nn.Conv2d:
        return Convolved.apply(x, layer.weight, layer.stride, layer.padding), layer.bias
    return layer(x), None


FUSED: Mapping[type[nn.Module], Callable[[Any], nn.Module | None]] = {
    ResnetBlock2D: ResBlock.of,
    Transformer2DModel: Spatial.of,
    BasicTransformerBlock: Block.of,
}
