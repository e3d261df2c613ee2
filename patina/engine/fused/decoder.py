"""A frozen language model's layers on kernels of our own: the same weights under the same names, fewer passes over
memory, and packed rows that look at nothing but themselves.

What is not of the plain sort that Llama, Mistral and Qwen are made of stays transformers' own.
"""

# What transformers' layers hold is annotated as any module or none: not ours to mend.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from importlib.util import find_spec
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from patina.engine.fused.linear import project
from patina.engine.fused.ops import add_rms, on_kernels, swish, turned

KINDS = (LlamaDecoderLayer, MistralDecoderLayer, Qwen2DecoderLayer, Qwen3DecoderLayer)
"""transformers' layers that are all of one shape: norm, attention, norm, gated layer."""
NORMED = (Qwen3DecoderLayer,)
"""Those whose queries and keys are normalised head by head."""
DEEPEST = 256
"""Numbers a head that attention over packed rows can take."""
AMPERE = (8, 0)
"""The first GPUs that can."""
CAUSAL = (-1, 0)
"""How far a token looks back, and forward."""


def fuse_decoder(model: nn.Module) -> int:
    """Put layers of ours in the place of transformers' plain ones; returns how many. What is computed stays."""
    found = [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if type(layer) in KINDS and _is_plain(layer)
    ]
    for parent, name, layer in found:
        made = Layer(layer)
        made.gradient_checkpointing, made.training = layer.gradient_checkpointing, layer.training
        if layer.gradient_checkpointing:
            made._gradient_checkpointing_func = layer._gradient_checkpointing_func
        setattr(parent, name, made)
    return len(found)


class Layer(GradientCheckpointingLayer):
    """transformers' decoder layer."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.self_attn, self.mlp, self.normed = layer.self_attn, layer.mlp, type(layer) in NORMED
        self.input_layernorm, self.post_attention_layernorm = layer.input_layernorm, layer.post_attention_layernorm

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **said: Any,
    ) -> Tensor:
        """[B,T,C], as transformers calls it; by its `cu_seq_lens_q` [M] int32 rows that lie end to end are apart."""
        assert position_embeddings is not None
        attn, mlp = self.self_attn, self.mlp
        y, x = _norm(self.input_layernorm, hidden_states, None)
        q, k, v = project([attn.q_proj, attn.k_proj, attn.v_proj], y)
        q, k, v = (part.unflatten(-1, (-1, attn.head_dim)) for part in (q, k, v))
        if self.normed:
            q, k = (_norm(norm, part, None)[0] for norm, part in ((attn.q_norm, q), (attn.k_norm, k)))
        q, k = (turned(part, *position_embeddings) for part in (q, k))
        y = _attend(attn, q, k, v, attention_mask, past_key_values, said)
        (y,) = project([attn.o_proj], y.flatten(2))
        y, x = _norm(self.post_attention_layernorm, x, y)
        (y,) = project([mlp.down_proj], swish(*project([mlp.gate_proj, mlp.up_proj], y)))
        return x + y


def _attend(attn: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, cache: Any, said: Any) -> Tensor:
    """Heads [B,T,heads,D] -> [B,T,heads,D]."""
    starts = said.get("cu_seq_lens_q")
    if cache is None and starts is not None and on_kernels(q):
        return _packed(attn, q, k, v, starts)
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    if cache is not None:
        k, v = cache.update(k, v, attn.layer_idx)
    return sdpa_attention_forward(attn, q, k, v, mask, dropout=0.0, scaling=attn.scaling)[0]


def _packed(attn: Any, q: Tensor, k: Tensor, v: Tensor, starts: Tensor) -> Tensor:
    """Each row of a packed one over itself alone (Dao et al. 2022, arXiv:2205.14135): no mask, and nothing wasted."""
    from torch.nn.attention.varlen import varlen_attn  # deferred: torch has it since 2.10

    longest = q.shape[1]  # at most: none goes on in the next row
    k, v = (part.repeat_interleave(attn.num_key_value_groups, dim=2) for part in (k, v))
    flat_q, flat_k, flat_v = (part.flatten(0, 1) for part in (q, k, v))
    y = varlen_attn(flat_q, flat_k, flat_v, starts, starts, longest, longest, scale=attn.scaling, window_size=CAUSAL)
    assert isinstance(y, Tensor)
    return y.view(q.shape)


def sees_apart(model: Any) -> bool:
    """Whether the rows that a batch lays end to end can be told to this model's layers; see `_packed`."""
    if find_spec("torch.nn.attention.varlen") is None or torch.cuda.get_device_capability(model.device) < AMPERE:
        return False
    from torch.nn.attention.varlen import varlen_attn

    if "window_size" not in signature(varlen_attn).parameters:  # before torch 2.11
        return False
    config = model.config.to_dict()
    layers = [layer for layer in model.modules() if isinstance(layer, Layer)]
    whole = len(layers) == config["num_hidden_layers"] and config.get("sliding_window") is None
    return whole and all(layer.self_attn.head_dim <= DEEPEST for layer in layers)


def _is_plain(layer: Any) -> bool:
    """Whether its norms are frozen, its gate is SiLU, and its attention torch's own."""
    norms = [module for module in layer.modules() if type(module).__name__.endswith("RMSNorm")]
    frozen = not any(weight.requires_grad for norm in norms for weight in norm.parameters())
    gated = isinstance(layer.mlp.act_fn, nn.SiLU | SiLUActivation)
    return frozen and gated and layer.self_attn.config._attn_implementation == "sdpa"


def _norm(norm: Any, a: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor]:
    return add_rms(norm, norm.variance_epsilon, a, b)
