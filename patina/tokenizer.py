"""The CLIP tokenizer of Stable Diffusion, built from the BPE table that ships inside open_clip."""

import json
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer

CONTEXT = 77
"""Tokens a CLIP text encoder takes: start, 75 of text, end."""


def clip_tokenizer(pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """The 49,408-token tokenizer that OpenAI's CLIP was trained with, as diffusers wants it; no download.

    `pad` fills captions up: CLIP's own end token, and `!` for the OpenCLIP encoders of Stable Diffusion 2 and XL.
    """
    # deferred: it takes seconds to import, and a base in a folder brings its own tokenizer
    from open_clip.tokenizer import SimpleTokenizer

    table = SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocab = {names.get(piece, piece): index for piece, index in table.encoder.items()}
    merges: Any = list(table.bpe_ranks)  # pairs, as `tokenizers` wants them; transformers' own annotation says strings
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad, model_max_length=CONTEXT)


def save_as_vocab_and_merges(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Save in the layout SD1.5 ships (vocab.json, merges.txt): 1.4 MB where tokenizer.json takes 3.6."""
    tokenizer.save_pretrained(folder)
    whole = folder / "tokenizer.json"
    model = json.loads(whole.read_text(encoding="utf-8"))["model"]
    vocab = json.dumps(model["vocab"], ensure_ascii=False, separators=(",", ":"))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "vocab.json").write_text(vocab, encoding="utf-8")
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    whole.unlink()
