"""The readers of files that somebody else wrote, and sound files that each of them reads."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import openpyxl
import torch
from PIL import Image
from safetensors.torch import save

from patina import configfile
from patina.caption.journal import read_journal
from patina.data.captions import find_captions, read_table, table_rows
from patina.data.images import FORMATS, open_image
from patina.lora.foreign import read_any
from patina.safeheader import read_header
from patina.text.read import read_rows


class Reader(NamedTuple):
    """A function of a file, and sound files that it reads."""

    read: Callable[[Path], object]
    ending: str
    seeds: tuple[bytes, ...]
    """What is spoiled."""
    packed: Callable[[bytes], bytes] = bytes
    """Makes a file of that."""


CONFIG = b"""train_data_dir: a
base_model: b.safetensors
output_dir: out
lora_rank: 8
learning_rate: 2e-4
network: {algo: lora, rank_pattern: ["IN0[0-3]=4"]}
preview:
  prompts: [a cat, "a \\"dog\\""]
"""
CHAT = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]}
ROWS = [{"question": "how many?", "answer": "two"}, CHAT, {"instruction": "a", "input": "", "output": "b"}]


def picture(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.linear_gradient("L").resize((9, 7)).convert("RGB").save(stream, format=kind)
    return stream.getvalue()


def workbook() -> bytes:
    book, stream = openpyxl.Workbook(), io.BytesIO()
    assert book.active is not None
    for row in (("问题", "答案"), ("how many?", "two"), ("which?", "that")):
        book.active.append(row)
    book.save(stream)
    return stream.getvalue()


def captions_of(path: Path) -> object:
    return read_table(path), find_captions([path.with_suffix(".png")], path.parent, path)


def rows_of(path: Path) -> object:
    return table_rows(path, path.parent)


LORA = save(
    {
        "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.ones(2, 4),
        "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": torch.ones(4, 2),
        "lora_unet_mid_block_attentions_0_proj_in.alpha": torch.tensor(2.0),
    },
    {"ss_network_dim": "2"},
)
TENSORS = 68
"""Bytes of that LoRA's tensors."""
SHEET = "xl/worksheets/sheet1.xml"


def part_of(book: bytes, name: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(book)) as archive:
        return archive.read(name)


def with_sheet(xml: bytes) -> bytes:
    """A workbook whose one sheet is this: spoiled as a whole it is hardly ever a zip archive any more."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(BOOK)) as book, zipfile.ZipFile(stream, "w") as archive:
        for name in book.namelist():
            archive.writestr(name, xml if name == SHEET else book.read(name))
    return stream.getvalue()


def with_length(text: bytes) -> bytes:
    """A safetensors file with this header."""
    return len(text).to_bytes(8, "little") + text + bytes(TENSORS)


BOOK = workbook()
READERS = {
    "config": Reader(configfile.load, ".yaml", (CONFIG,)),
    "table": Reader(captions_of, ".csv", (b'filename,prompt\na.png,"a, ""b"""\nb.png,red, round\n', b"\xef\xbb\xbf")),
    "lines": Reader(rows_of, ".jsonl", (b'{"file_name": "a.png", "text": "b"}\n{"path": "c.png", "tags": ["d"]}\n',)),
    "kohya": Reader(rows_of, ".json", (b'{"a": {"caption": "b", "tags": "c, d"}, "e.png": {"tags": ["f"]}}',)),
    "journal": Reader(lambda path: read_journal(path, "k"), ".jsonl", (b'{"key": "k"}\n{"name": "a", "text": "b"}\n',)),
    "header": Reader(read_header, ".safetensors", (LORA,)),
    "lora": Reader(read_any, ".safetensors", (LORA,)),
    "picture": Reader(open_image, ".png", tuple(picture(kind) for kind in FORMATS)),
    "jsonl": Reader(read_rows, ".jsonl", ("\n".join(json.dumps(row) for row in ROWS).encode(),)),
    "json": Reader(read_rows, ".json", (json.dumps(ROWS).encode(),)),
    "text": Reader(read_rows, ".txt", ("Q: how many?\nA: two\n\n问：几个？\n答：两个\n".encode(),)),
    "csv": Reader(read_rows, ".csv", ("问题,答案\n几个,两个\n".encode("gbk"), b"prompt;completion\na;b\n")),
    "sheet": Reader(read_rows, ".xlsx", (BOOK,)),
    "cells": Reader(read_rows, ".xlsx", (part_of(BOOK, SHEET),), with_sheet),
    "entries": Reader(read_any, ".safetensors", (LORA[8:-TENSORS],), with_length),
}
LENIENT = {"journal"}
"""What is damaged in a journal is labelled anew, without a word."""
TOKENS = (b"\0", b"\n", b"\r", b'"', b"{", b"[", b"]}", b": ", b",,,", b"<<: ", b"&a *a", b"!!python/object:os.system")
TOKENS += (b"99999999999999999999", b"-1", b"nan", b"../", b"=1+1", b"\x1b[2J", b"\xff\xfe", b"PK\3\4", b"__metadata__")
