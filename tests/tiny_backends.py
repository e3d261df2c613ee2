"""Tiny captioning models in each library's own layout, random but always the same; their captions are nonsense."""

import csv
import re
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import save_for_hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors
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
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

WORDS = re.findall(
    r"\w+", "a an the red blue green cat dog tree house on in near by with small large old new and of is sits runs"
)
"""What a tiny model can say; words of questions are unknown to it."""


def save_blip(folder: Path) -> Path:
    folder.mkdir(parents=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    text = {"vocab_size": len(words), "hidden_size": 16, "encoder_hidden_size": 16, "intermediate_size": 16}
    text |= {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64, "projection_dim": 16}
    ids = {"bos_token_id": 5, "pad_token_id": 0, "eos_token_id": 3, "sep_token_id": 3}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 16}
    config = BlipConfig(text_config=text | ids, vision_config=vision, projection_dim=16, image_text_hidden_size=16)
    processor = BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer)
    return _save(folder, BlipForConditionalGeneration(config), processor, seed=13)


def save_blip2(folder: Path) -> Path:
    tokenizer = _tokenizer("</s>", "<image>")
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"model_type": "opt", "vocab_size": len(tokenizer), "hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "word_embed_proj_dim": 16, "max_position_embeddings": 128}
    text |= {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    config = Blip2Config(
        vision_config={**size, "image_size": 32, "patch_size": 16},
        qformer_config={**size, "encoder_hidden_size": 16, "vocab_size": 30},
        text_config=text,
        num_query_tokens=3,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    images = BlipImageProcessor(size={"height": 32, "width": 32})
    processor = Blip2Processor(images, tokenizer, num_query_tokens=3)
    return _save(folder, Blip2ForConditionalGeneration(config), processor, seed=15)


def save_florence2(folder: Path) -> Path:
    tokenizer = _tokenizer("</s>", "<image>", bos="<s>", extra_special_tokens={"image_token": "<image>"})
    text = {"model_type": "bart", "vocab_size": len(tokenizer), "d_model": 16, "encoder_layers": 1, "decoder_layers": 1}
    text |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    text |= {"max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": tokenizer.bos_token_id}
    text |= {"eos_token_id": 1, "decoder_start_token_id": 1, "forced_bos_token_id": tokenizer.bos_token_id}
    text |= {"forced_eos_token_id": 1}
    vision = {"depths": (1, 1), "patch_size": (7, 3), "patch_stride": (4, 2), "patch_padding": (3, 1)}
    vision |= {"patch_prenorm": (False, True), "embed_dim": (8, 16), "num_heads": (2, 2), "num_groups": (2, 2)}
    vision |= {"window_size": 4, "projection_dim": 16, "drop_path_rate": 0.0, "max_position_embeddings": 16}
    config = Florence2Config(
        text_config=text, vision_config=vision, image_token_id=tokenizer.convert_tokens_to_ids("<image>")
    )
    images = CLIPImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False)
    images.image_seq_length = 17
    return _save(folder, Florence2ForConditionalGeneration(config), Florence2Processor(images, tokenizer), seed=15)


PARTS = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}<|end|>"
)
STRINGS = "{% for message in messages %}IMAGE {{ message['content'] }}{% endfor %}<|end|>"
"""A template such as JoyCaption's, which takes a string and puts the picture in front itself."""


def save_qwen2vl(folder: Path) -> Path:
    tokenizer = _tokenizer("</s>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|end|>")
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad")}
    text = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
    text |= {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    config = Qwen2VLConfig(
        text_config=text,
        vision_config={"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 1, "patch_size": 8},
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )
    shape = {"patch_size": 8, "size": {"shortest_edge": 256, "longest_edge": 2048}}
    template = PARTS.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(**shape), tokenizer, Qwen2VLVideoProcessor(**shape), chat_template=template
    )
    return _save(folder, Qwen2VLForConditionalGeneration(config), processor, seed=17)


def save_llava(folder: Path, width: int = 16) -> Path:
    tokenizer = _tokenizer("</s>", "<image>", "<|end|>")
    size = {"hidden_size": width, "intermediate_size": width, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **size, "image_size": 32, "patch_size": 16},
        text_config={"model_type": "llama", **size, "vocab_size": len(tokenizer), "num_key_value_heads": 2}
        | {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
    )
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=STRINGS.replace("IMAGE", "<image>"),
    )
    return _save(folder, LlavaForConditionalGeneration(config), processor, seed=11)


TAGS = (("general", 9), ("explicit", 9), *((name, 0) for name in ("1girl", "long_hair", "^_^", "o_o", "tree_house")))
TAGS += (("saber_(fate)", 4), ("rin", 4))


def save_wd(folder: Path) -> Path:
    """A ViT of timm, its pre-processing and its list of tags, as the hub's WD taggers have them."""
    torch.manual_seed(6)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=len(TAGS), **MODEL_ARGS)
    for weight in model.parameters():
        weight.data = torch.randn(weight.shape) * (0.7 if weight.ndim > 1 else 0.3)
    facts = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}
    save_for_hf(model, str(folder), model_args=MODEL_ARGS, data_config=facts, safe_serialization=True)
    with (folder / "selected_tags.csv").open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(("tag_id", "name", "category", "count"))
        table.writerows((at, name, category, 1) for at, (name, category) in enumerate(TAGS))
    return folder


MODEL_ARGS = {"img_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 2}


def _tokenizer(eos: str, *special: str, bos: str | None = None, **more: Any) -> PreTrainedTokenizerFast:
    """Whole words between spaces: 0 fills up, 1 ends a text, 2 is what is not known."""
    known = ["<pad>", eos, "<unk>", *([bos] if bos else []), *special, *WORDS]
    raw = Tokenizer(models.WordLevel({word: at for at, word in enumerate(known)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    first = bos or eos
    raw.post_processor = processors.TemplateProcessing(
        single=f"{first} $A", special_tokens=[(first, known.index(first))]
    )
    names = {"pad_token": "<pad>", "eos_token": eos, "unk_token": "<unk>", "bos_token": first}
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, **({"additional_special_tokens": list(special)} | more), **names
    )


def _save(folder: Path, model: Any, processor: Any, seed: int) -> Path:
    """Weights so large that words depend on the picture; by some seeds texts come to an end, by others they do not."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            width = weight.shape[-1] if weight.ndim < 3 else weight[0].numel()
            weight.data = torch.randn(weight.shape, generator=generator) * (2 if "embed" in name else 3) * width**-0.5
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
