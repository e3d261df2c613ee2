"""Real language models with a few thousand weights, and a tokenizer to go with them; built anew at each call."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SHAPE = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
)


def tokenizer(
    special: Sequence[str] = (PAD, START, END),
    template: str | None = CHATML,
    bos: str | None = None,
    eos: str = END,
    pad: str | None = PAD,
) -> PreTrainedTokenizerFast:
    """One token a byte, and one for each of `special`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={char: at for at, char in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in special])
    found = PreTrainedTokenizerFast(tokenizer_object=made, bos_token=bos, eos_token=eos, pad_token=pad)
    found.chat_template = template
    return found


def llama(seed: int = 0, **facts) -> LlamaForCausalLM:
    """A narrow Llama of two layers; the same weights for the same seed, the global random state left alone."""
    return built(LlamaForCausalLM, LlamaConfig, seed, {**SHAPE, **facts})


def qwen2(seed: int = 0, **facts) -> Qwen2ForCausalLM:
    """A narrow Qwen2 of two layers, output layer tied to the embeddings."""
    return built(Qwen2ForCausalLM, Qwen2Config, seed, {**SHAPE, "tie_word_embeddings": True, **facts})


def built(kind, config, seed: int, facts: dict):
    """A model of a class with a config of these facts, its weights drawn by the seed."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        # 0.2, ten times the usual: with so few weights attention would otherwise hardly tell one row from another
        none: dict = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
        return kind(config(**{**none, "vocab_size": 300, "initializer_range": 0.2, **facts})).eval()


def save(folder: Path, model: PreTrainedModel | None = None) -> Path:
    """A tiny Llama, or `model`, with the tokenizer, as transformers keeps them."""
    (model or llama()).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
