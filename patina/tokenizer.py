"""The CLIP tokenizer of Stable Diffusion, built from the BPE table that ships inside open_clip."""

import gzip
import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

CONTEXT = 77
"""Tokens a CLIP text encoder takes: start, 75 of text, end."""
TABLE = "bpe_simple_vocab_16e6.txt.gz"
"""The pairs of pieces that CLIP's byte pair encoding joins, after a line of title, the most frequent first."""
MERGES = 49408 - 2 * 256 - 2
"""How many of them CLIP uses: its vocabulary less the bytes, the bytes that end a word, and two marks."""


def clip_tokenizer(pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """The 49,408-token tokenizer that OpenAI's CLIP was trained with, as diffusers wants it; no download.

    `pad` fills captions up: CLIP's own end token, and `!` for the OpenCLIP encoders of Stable Diffusion 2 and XL.
    """
    merges: Any = _merges()  # pairs, as `tokenizers` wants them; transformers' own annotation says strings
    letters = list(bytes_to_unicode().values())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    vocab = {piece: index for index, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad, model_max_length=CONTEXT)


@cache
def _merges() -> list[tuple[str, ...]]:
    """Read from the file, because importing open_clip for it takes three seconds."""
    package = find_spec("open_clip")
    assert package is not None, "open-clip-torch is a dependency"
    assert package.submodule_search_locations is not None, "it is a package"
    table = Path(package.submodule_search_locations[0]) / TABLE
    lines = gzip.decompress(table.read_bytes()).decode("utf-8").split("\n")
    return [tuple(line.split()) for line in lines[1 : MERGES + 1]]


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
