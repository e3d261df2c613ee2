"""The labeller's models with random weights in their published shapes, in the layout that each library reads."""

# transformers annotates what it takes more narrowly than it is: not ours to mend.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPImageProcessor,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

LAYERS = 1
"""Of the models that are made narrow, to try the benchmark out."""
LIKELY = 25
"""Tags of every picture."""
WEIGHTS = "open_clip_model.safetensors"
TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)


def make_coca(folder: Path, narrow: bool) -> None:
    """CoCa ViT-L/14, the labeller's default."""
    config = dict(open_clip.get_model_config("coca_ViT-L-14") or {})
    if narrow:
        for part in ("vision_cfg", "text_cfg", "multimodal_cfg"):
            config[part] = {**config[part], "layers": LAYERS}
    model = open_clip.CoCa(**{name: part for name, part in config.items() if name != "custom_text"})
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: part.contiguous() for name, part in model.state_dict().items()}, folder / WEIGHTS)
    described = {"model_cfg": config, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(described), encoding="utf-8")


def make_blip(folder: Path, narrow: bool) -> None:
    """BLIP base."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_words(30_517)]))
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    few = {"num_hidden_layers": LAYERS} if narrow else {}
    text = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id, "pad_token_id": 0, **few}
    ends = {"sep_token_id": tokenizer.sep_token_id, "eos_token_id": tokenizer.sep_token_id}
    config = BlipConfig(text_config=text | ends, vision_config=few)
    images = BlipImageProcessor(size={"height": 384, "width": 384})
    _save(folder, BlipForConditionalGeneration(config), BlipProcessor(images, tokenizer))


def make_blip2(folder: Path, narrow: bool) -> None:
    """BLIP-2 with OPT 2.7b."""
    tokenizer = _tokenizer(50_265, "<image>")
    few = {"num_hidden_layers": LAYERS} if narrow else {}
    shape = {"hidden_size": 2560, "ffn_dim": 10_240, "num_hidden_layers": 32, "num_attention_heads": 32}
    shape |= {"word_embed_proj_dim": 2560}
    text = {"model_type": "opt", "vocab_size": len(tokenizer), **shape, **few}
    text |= {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    image = tokenizer.convert_tokens_to_ids("<image>")
    config = Blip2Config(vision_config=few, qformer_config=few, text_config=text, image_token_index=image)
    processor = Blip2Processor(BlipImageProcessor(size={"height": 224, "width": 224}), tokenizer, num_query_tokens=32)
    _save(folder, Blip2ForConditionalGeneration(config), processor)


def make_florence2(folder: Path, narrow: bool) -> None:
    """Florence-2 base."""
    tokenizer = _tokenizer(51_289, "<image>", image_token="<image>")
    layers = LAYERS if narrow else 6
    text = {"vocab_size": len(tokenizer), "d_model": 768, "encoder_layers": layers, "decoder_layers": layers}
    text |= {"encoder_attention_heads": 12, "decoder_attention_heads": 12}
    text |= {"encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    text |= {"decoder_start_token_id": 1, "forced_bos_token_id": 1, "forced_eos_token_id": 1}
    vision = {"depths": (1, 1, 1, 1) if narrow else (1, 1, 9, 1), "projection_dim": 768}
    image = tokenizer.convert_tokens_to_ids("<image>")
    config = Florence2Config(text_config=text, vision_config=vision, image_token_id=image)
    images = CLIPImageProcessor(size={"height": 768, "width": 768}, do_center_crop=False, resample=3)
    images.image_seq_length = 577
    _save(folder, Florence2ForConditionalGeneration(config), Florence2Processor(images, tokenizer))


def make_vlm(folder: Path, narrow: bool) -> None:
    """Qwen2-VL 2B."""
    special = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    tokenizer = _tokenizer(151_936, *special)
    text = {"vocab_size": len(tokenizer), "hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12}
    text |= {"num_hidden_layers": LAYERS if narrow else 28, "num_key_value_heads": 2, "tie_word_embeddings": True}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}}
    text |= {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    vision = {"depth": LAYERS if narrow else 32, "hidden_size": 1536}
    ids = dict(zip(special, tokenizer.convert_tokens_to_ids(list(special)), strict=True))
    config = Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    most = {"size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}}
    images, films = Qwen2VLImageProcessor(**most), Qwen2VLVideoProcessor(**most)
    processor = Qwen2VLProcessor(images, tokenizer, films, chat_template=TEMPLATE)
    _save(folder, Qwen2VLForConditionalGeneration(config), processor)


def make_wd(folder: Path, narrow: bool) -> None:
    """WD ViT tagger v3: ViT-B/16 at 448 pixels."""
    tags = 10_861  # at a probability of a half each, all would be written
    shape = {"img_size": 448, **({"depth": LAYERS} if narrow else {})}
    model: Any = timm.create_model("vit_base_patch16_224", num_classes=tags, **shape)
    torch.nn.init.constant_(model.head.bias, -4)
    torch.nn.init.constant_(model.head.bias[:LIKELY], 4)
    facts = {"input_size": (3, 448, 448), "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}
    save_for_hf(model, str(folder), model_args=shape, data_config=facts, safe_serialization=True)
    with (folder / "selected_tags.csv").open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(("tag_id", "name", "category", "count"))
        table.writerows((at, word, 0, 1) for at, word in enumerate(_words(tags)))


MAKERS: Mapping[str, Callable[[Path, bool], None]] = {
    "coca": make_coca,
    "blip": make_blip,
    "blip2": make_blip2,
    "florence2": make_florence2,
    "vlm": make_vlm,
    "wd": make_wd,
}
"""Backend -> (folder, narrow): writes its model there."""


def make(backend: str, folder: Path, device: torch.device, *, narrow: bool) -> None:
    """Draw a backend's model; large ones are drawn on the device, in half precision, as they are published."""
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    try:
        torch.set_default_dtype(torch.bfloat16 if device.type == "cuda" and backend in ("blip2", "vlm") else before)
        with device:
            MAKERS[backend](folder, narrow)
    finally:
        torch.set_default_dtype(before)


def _tokenizer(size: int, *special: str, **more: Any) -> PreTrainedTokenizerFast:
    """`size` words in all: 0 fills up, 1 ends a text, 2 is what is not known."""
    known = ["<pad>", "</s>", "<unk>", *special]
    known += _words(size - len(known))
    raw = Tokenizer(models.WordLevel({word: at for at, word in enumerate(known)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "bos_token": "</s>"}
    kept = {"extra_special_tokens": more} if more else {"additional_special_tokens": list(special)}
    return PreTrainedTokenizerFast(tokenizer_object=raw, **kept, **names)


def _words(count: int) -> list[str]:
    return [f"word{number}" for number in range(count)]


def _save(folder: Path, model: Any, processor: Any) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
