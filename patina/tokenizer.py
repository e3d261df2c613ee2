"""The CLIP tokenizer of Stable Diffusion, built from the BPE table that ships inside open_clip."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import NFC, Lowercase, Replace
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as Splitters

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

CONTEXT = 77
"""Tokens a CLIP text encoder takes: start, 75 of text, end."""
TABLE = "bpe_simple_vocab_16e6.txt.gz"
"""The pairs of pieces that CLIP's byte pair encoding joins, after a line of title, the most frequent first."""
MERGES = 49408 - 2 * 256 - 2
"""How many of them CLIP uses: its vocabulary less the bytes, the bytes that end a word, and two marks."""
MARKS = ("<|startoftext|>", "<|endoftext|>")
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""What CLIP parts a text into before it looks for pieces (its `simple_tokenizer.py`)."""


def clip_tokenizer(pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """The 49,408-token tokenizer that OpenAI's CLIP was trained with, as diffusers wants it; no download.

    `pad` fills captions up: CLIP's own end token, and `!` for the OpenCLIP encoders of Stable Diffusion 2 and XL.
    """
    from transformers import CLIPTokenizer  # deferred: slow to import

    merges: Any = _merges()  # pairs, as `tokenizers` wants them; transformers' own annotation says strings
    return CLIPTokenizer(vocab=_vocabulary(), merges=merges, pad_token=pad, model_max_length=CONTEXT)


def count_tokens(texts: Sequence[str]) -> list[int]:
    """How many tokens `clip_tokenizer` makes of each text, start and end not counted; without transformers, which takes
    most of a second to import."""
    return [len(read) for read in _bare().encode_batch(texts, add_special_tokens=False)]


@cache
def _bare() -> Tokenizer:
    """As transformers' `CLIPTokenizer` builds it."""
    pieces = BPE(vocab=_vocabulary(), merges=_merges(), end_of_word_suffix="</w>", unk_token=MARKS[1])
    bare = Tokenizer(pieces)
    bare.normalizer = Normalizers([NFC(), Replace(Regex(r"\s+"), " "), Lowercase()])
    words = Split(Regex(WORDS), behavior="removed", invert=True)
    bare.pre_tokenizer = Splitters([words, ByteLevel(add_prefix_space=False)])
    bare.add_special_tokens(list(MARKS))
    return bare


def _vocabulary() -> dict[str, int]:
    letters = sorted(ByteLevel.alphabet())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in _merges())]
    return {piece: index for index, piece in enumerate([*pieces, *MARKS])}


@cache
def _merges() -> list[tuple[str, str]]:
    """Read from the file, because importing open_clip for it takes three seconds."""
    package = find_spec("open_clip")
    assert package is not None, "open-clip-torch is a dependency"
    assert package.submodule_search_locations is not None, "it is a package"
    table = Path(package.submodule_search_locations[0]) / TABLE
    lines = gzip.decompress(table.read_bytes()).decode("utf-8").split("\n")
    pairs = (line.split() for line in lines[1 : MERGES + 1])
    return [(left, right) for left, right in pairs]


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
