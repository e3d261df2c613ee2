"""A pipeline's weights under the names that Stability's own programs give them, as checkpoints on model sites have."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTSIDE = {
    "conv_in.": "input_blocks.0.0.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "add_embedding.linear_1.": "label_emb.0.0.",
    "add_embedding.linear_2.": "label_emb.0.2.",
}
OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def checkpoint(pipe, vae: bool = True) -> dict[str, Tensor]:
    """All that a single file holds of a pipeline."""
    weights = {f"model.diffusion_model.{k}": w for k, w in unet(pipe.unet.state_dict()).items()}
    if vae:
        weights |= {f"first_stage_model.{k}": w for k, w in autoencoder(pipe.vae.state_dict()).items()}
    first, second = pipe.text_encoder.state_dict(), pipe.components.get("text_encoder_2")
    if second is not None:
        weights |= {f"conditioner.embedders.0.transformer.{k}": w for k, w in clip(first).items()}
        return weights | {f"conditioner.embedders.1.model.{k}": w for k, w in open_clip(second.state_dict()).items()}
    if pipe.text_encoder.config.hidden_act == "quick_gelu":
        return weights | {f"cond_stage_model.transformer.{k}": w for k, w in clip(first).items()}
    return weights | {f"cond_stage_model.model.{k}": w for k, w in open_clip(first, spare_layer=True).items()}


def unet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Three input blocks a level (two layers and what makes the picture smaller), three output blocks a level."""
    attended = {name.split(".")[1] for name in state if name.startswith("up_blocks.") and ".attentions." in name}
    return {_unet_name(name, attended): weight for name, weight in state.items()}


def _unet_name(name: str, attended: set[str]) -> str:
    for ours, theirs in OUTSIDE.items():
        if name.startswith(ours):
            return name.replace(ours, theirs, 1)
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        kind, j, rest = found.groups()
        return f"middle_block.{2 * int(j) if kind == 'resnets' else 1}.{_inner(kind, rest)}"
    if found := re.fullmatch(r"(down|up)_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.*)", name):
        way, i, kind, j, rest = found.groups()
        block = 3 * int(i) + int(j)
        place = f"input_blocks.{block + 1}" if way == "down" else f"output_blocks.{block}"
        return f"{place}.{0 if kind == 'resnets' else 1}.{_inner(kind, rest)}"
    if found := re.fullmatch(r"down_blocks\.(\d)\.downsamplers\.0\.conv\.(.*)", name):
        return f"input_blocks.{3 * int(found[1]) + 3}.0.op.{found[2]}"
    found = re.fullmatch(r"up_blocks\.(\d)\.upsamplers\.0\.conv\.(.*)", name)
    assert found, name
    return f"output_blocks.{3 * int(found[1]) + 2}.{2 if found[1] in attended else 1}.conv.{found[2]}"


def _inner(kind: str, rest: str) -> str:
    layer, _, end = rest.rpartition(".")
    return f"{RESNET[layer]}.{end}" if kind == "resnets" else rest


def autoencoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The decoder's levels are counted from the finest; attention is by 1x1 convolutions."""
    top = max(int(name.split(".")[2]) for name in state if name.startswith("decoder.up_blocks."))
    named = {}
    for name, weight in state.items():
        new = re.sub(r"up_blocks\.(\d)", lambda found: f"up.{top - int(found[1])}", name)
        new = new.replace("down_blocks.", "down.").replace("mid_block.attentions.0.", "mid.attn_1.")
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", new)
        new = (
            new.replace(".resnets.", ".block.")
            .replace("samplers.0.", "sample.")
            .replace("conv_shortcut", "nin_shortcut")
        )
        new = new.replace("conv_norm_out", "norm_out").replace("group_norm", "norm").replace("to_out.0", "proj_out")
        new = re.sub(r"to_([qkv])", r"\1", new)
        convolved = "attn_1" in new and weight.ndim == 2
        named[new] = weight[:, :, None, None] if convolved else weight
    return named


def clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As OpenAI's, with the buffer that early transformers saved."""
    named = {f"text_model.{name.removeprefix('text_model.')}": weight for name, weight in state.items()}
    return named | {"text_model.embeddings.position_ids": torch.arange(77)[None]}


def open_clip(state: Mapping[str, Tensor], spare_layer: bool = False) -> dict[str, Tensor]:
    """One matrix for queries, keys and values; the projection the other way round; 2.x has a last layer more."""
    state = {name.removeprefix("text_model."): weight for name, weight in state.items()}
    width = state["final_layer_norm.weight"].shape[0]
    named = {
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "text_projection": state["text_projection.weight"].T if "text_projection.weight" in state else torch.eye(width),
        "logit_scale": torch.tensor(4.6),
    }
    layers = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.layers."))
    for n in range(layers):
        inside = {k.removeprefix(f"encoder.layers.{n}."): w for k, w in state.items() if f"encoder.layers.{n}." in k}
        block = _open_clip_layer(inside)
        named |= {f"transformer.resblocks.{n}.{name}": weight for name, weight in block.items()}
        if spare_layer and n == layers - 1:
            named |= {f"transformer.resblocks.{layers}.{name}": weight + 1 for name, weight in block.items()}
    return named


def _open_clip_layer(inside: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named = {
        f"attn.in_proj_{end}": torch.cat([inside[f"self_attn.{part}_proj.{end}"] for part in "qkv"])
        for end in ("weight", "bias")
    }
    for ours, theirs in OPEN_CLIP.items():
        named |= {f"{theirs}.{end}": inside[f"{ours}.{end}"] for end in ("weight", "bias")}
    return named
