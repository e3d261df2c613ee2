"""CoCa's greedy decoder with a cache of keys and values: each step reads one token, not the whole text again."""

from typing import cast

import open_clip
import torch
from open_clip.transformer import ResidualAttentionBlock, TextTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from patina.errors import PatinaError

MIN_IDS = 5
"""No caption ends before this many ids, the start counted: what open_clip's own decoder does."""


class _Attention:
    """One attention layer of one decoding: the keys and values (N, heads, length, width) seen so far."""

    def __init__(self, block: ResidualAttentionBlock) -> None:
        self.block = block
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def read_pictures(self, embedded: Tensor) -> None:
        """Keys and values of the pictures (N, length, width), which stay the same for every token."""
        self._keys, self._values = _projected(self.block, self.block.ln_1_kv(embedded), 1, 3)

    def read_token(self, token: Tensor) -> Tensor:
        """The block's output for one more token (N, 1, width), which joins what later ones look back on."""
        query, key, value = _projected(self.block, self.block.ln_1(token), 0, 3)
        self._keys = key if self._keys is None else torch.cat((self._keys, key), 2)
        self._values = value if self._values is None else torch.cat((self._values, value), 2)
        return self._finish(token, query)

    def look_at_pictures(self, token: Tensor) -> Tensor:
        """The block's output for one token (N, 1, width) that asks about the pictures."""
        (query,) = _projected(self.block, self.block.ln_1(token), 0, 1)
        return self._finish(token, query)

    def _finish(self, token: Tensor, query: Tensor) -> Tensor:
        block = self.block
        assert self._keys is not None
        assert self._values is not None
        found = F.scaled_dot_product_attention(query, self._keys, self._values)
        token = token + block.ls_1(block.attn.out_proj(found.transpose(1, 2).flatten(2)))
        return token + block.ls_2(block.mlp(block.ln_2(token)))


def check_decodable(model: open_clip.CoCa, name: str) -> None:
    """Raise PatinaError for a CoCa whose text is not read from left to right by plain blocks."""
    text = model.text
    plain = isinstance(text, TextTransformer) and text.attn_mask is not None and text.cls_emb is not None
    blocks = _blocks(text.transformer) + _blocks(model.text_decoder) if plain else []
    if not plain or not all(isinstance(block, ResidualAttentionBlock) for block in blocks):
        raise PatinaError(f"{name}: its text tower is of a kind that is not decoded here; give a CoCa as open_clip has")


@torch.inference_mode()
def greedy(model: open_clip.CoCa, embedded: Tensor, start: int, end: int, limit: int) -> Tensor:
    """Pictures as `image_embs` (N, length, width) to ids (N, L <= limit): start, text, end, then padding.

    The likeliest token each time; no row depends on another. The ids are those of reading the whole prefix anew for
    each token, as open_clip does.
    """
    text = cast(TextTransformer, model.text)
    own, decoder, crossed = _attentions(model, embedded)
    ids = torch.full((len(embedded), 1), start, device=embedded.device)
    ended = torch.zeros(len(embedded), dtype=torch.bool, device=embedded.device)
    while ids.shape[1] < limit and not ended.all():
        at = ids.shape[1] - 1
        token = text.token_embedding(ids[:, -1:]).to(embedded.dtype) + text.positional_embedding[at].to(embedded.dtype)
        for layer in own:
            token = layer.read_token(token)
        for layer, cross in zip(decoder, crossed, strict=True):
            token = cross.look_at_pictures(layer.read_token(token))
        logits = (model.text_decoder.ln_final(token) @ model.text_decoder.text_projection)[:, 0]
        # Neither is text: training ignores the padding id, and the start stands only in front.
        logits[:, [model.pad_id, start]] = -torch.inf
        if ids.shape[1] < MIN_IDS:
            logits[:, end] = -torch.inf
        chosen = logits.argmax(-1).masked_fill(ended, model.pad_id)
        ended |= chosen == end
        ids = torch.cat((ids, chosen[:, None]), 1)
    return ids


def _attentions(model: open_clip.CoCa, embedded: Tensor) -> tuple[list[_Attention], list[_Attention], list[_Attention]]:
    """The text tower's layers, the decoder's own, and those that look at the pictures, which they have read."""
    own = [_Attention(block) for block in _blocks(model.text.transformer)]
    decoder = [_Attention(block) for block in _blocks(model.text_decoder)]
    crossed = [_Attention(cast(ResidualAttentionBlock, block)) for block in model.text_decoder.cross_attn]
    for layer in crossed:
        layer.read_pictures(embedded)
    return own, decoder, crossed


def _blocks(transformer: nn.Module) -> list[ResidualAttentionBlock]:
    return list(cast(nn.ModuleList, transformer.resblocks))  # pyright: ignore[reportReturnType]


def _projected(block: ResidualAttentionBlock, x: Tensor, first: int, last: int) -> list[Tensor]:
    """Query, key and value (0, 1, 2) from `first` to before `last`, each (N, heads, length, width of a head)."""
    attn = block.attn
    assert attn.in_proj_weight is not None
    assert attn.in_proj_bias is not None
    rows = slice(first * attn.embed_dim, last * attn.embed_dim)
    joined = F.linear(x, attn.in_proj_weight[rows], attn.in_proj_bias[rows])
    return [part.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for part in joined.chunk(last - first, -1)]
