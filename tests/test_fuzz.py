"""Files that nobody meant to write: each reader takes what it can read and answers the rest with a PatinaError."""

import io
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import openpyxl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from patina import configfile
from patina.caption.journal import read_journal
from patina.data.captions import find_captions, read_table, table_rows
from patina.data.images import FORMATS, open_image
from patina.emphasis import weighed
from patina.errors import PatinaError
from patina.lora.foreign import read_any
from patina.promptline import parse_line
from patina.safeheader import read_header
from patina.text.read import read_rows

EXAMPLES = 60
"""A reader in the default run; derandomised, so that a failure comes again."""


class Reader(NamedTuple):
    """A function of a file, and sound files that it reads."""

    read: Callable[[Path], object]
    ending: str
    seeds: tuple[bytes, ...]


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
    "sheet": Reader(read_rows, ".xlsx", (workbook(),)),
}
LENIENT = {"journal"}
"""What is damaged in a journal is labelled anew, without a word."""
TOKENS = (b"\0", b"\n", b"\r", b'"', b"{", b"[", b"]}", b": ", b",,,", b"<<: ", b"&a *a", b"!!python/object:os.system")
TOKENS += (b"99999999999999999999", b"-1", b"nan", b"../", b"=1+1", b"\x1b[2J", b"\xff\xfe", b"PK\3\4", b"__metadata__")


@st.composite
def spoiled(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """A sound file with some of its bytes cut out, written over, doubled or put in."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(data)))
        end = min(len(data), begin + draw(st.integers(0, 12)))
        middle = draw(st.one_of(st.sampled_from(TOKENS), st.binary(max_size=8), st.just(data[begin:end] * 3)))
        data = data[:begin] + middle + data[end:]
    return data


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of damage that Pillow can live with
@pytest.mark.parametrize("name", sorted(READERS.keys() - LENIENT))
def test_a_spoiled_file_is_read_or_answered(name, tmp_path) -> None:
    reader, answered = READERS[name], []
    path = tmp_path / f"file{reader.ending}"

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    @given(spoiled(reader.seeds))
    def meets(data: bytes) -> None:
        path.write_bytes(data)
        try:
            reader.read(path)
        except PatinaError as error:
            answered.append(str(error))

    meets()
    assert answered, "nothing that was tried was bad: this would not see a missing answer"
    assert all(path.name in answer or str(tmp_path) in answer for answer in answered)


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(spoiled(READERS["journal"].seeds))
def test_a_spoiled_journal_is_read_as_far_as_it_goes(data: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "journal")
        path.write_bytes(data)
        assert isinstance(read_journal(path, "k"), dict)


@pytest.mark.parametrize("name", READERS)
def test_the_sound_files_are_read(name, tmp_path) -> None:
    """Else the spoiled ones would be turned away at the door."""
    reader = READERS[name]
    path = tmp_path / f"file{reader.ending}"
    path.with_suffix(".png").touch()
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    for seed in reader.seeds[:1]:
        path.write_bytes(seed)
        reader.read(path)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(alphabet=st.one_of(st.sampled_from("()[]:\\1.2, <>-|"), st.characters()), max_size=40))
def test_any_caption_is_weighed_and_keeps_its_words(text: str) -> None:
    parts = weighed(text)
    assert all(isinstance(part, str) and weight == weight for part, weight in parts)  # a nan is not itself
    letters = {char for char in text if char.isalpha()}
    assert letters <= set("".join(part for part, _ in parts))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(alphabet=st.one_of(st.sampled_from("-<>:lora0123nsdwh ."), st.characters()), max_size=40))
def test_any_line_of_prompts_is_read_or_answered(line: str) -> None:
    with suppress(PatinaError):
        parse_line(line)
