"""Headers of safetensors files: sound ones are understood, and each way of being unsound has its sentence."""

import json
import pickle
import struct

import pytest
import torch
from safetensors.torch import save_file

from patina.errors import PatinaError
from patina.safeheader import Entry, read_header


def packed(header: object, payload: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + payload


def tensor(begin: int, end: int, shape: tuple[int, ...] = (2,), dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("count", [1, 3, 200])
def test_a_sound_header_is_what_the_library_wrote(tmp_path, count):
    path = tmp_path / "a.safetensors"
    tensors = {f"t{n}": torch.zeros(n, 3, dtype=torch.bfloat16) for n in range(count)}  # the first is empty
    save_file(tensors, path, metadata={"x": "y"})
    header = read_header(path)
    assert header.metadata == {"x": "y"}
    assert {name: entry.shape for name, entry in header.tensors.items()} == {
        n: tuple(t.shape) for n, t in tensors.items()
    }
    assert sum(entry.end - entry.begin for entry in header.tensors.values()) == path.stat().st_size - header.start


def test_a_header_may_be_as_long_as_a_pickles_first_bytes_say(tmp_path):
    """640 is 0x0280, with which a pickle begins, too."""
    path = tmp_path / "a.safetensors"
    text = json.dumps({"a": tensor(0, 8)}).encode().ljust(640)
    path.write_bytes(packed(text, bytes(8)))
    assert path.read_bytes().startswith(b"\x80\x02")
    assert read_header(path).tensors == {"a": Entry("F32", (2,), 0, 8)}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a whole safetensors file .0 bytes."),
        (b"\x00\x01", "not a whole"),
        (struct.pack("<Q", 2_000_000_000) + b'{"a":', "not a whole"),
        (struct.pack("<Q", 100) + b'{"a":', "not a whole"),
        (packed(b"\xff\xfe{}"), "not JSON"),
        (packed(b'{"a": '), "not JSON"),
        (packed(b"[" * 100_000), "not JSON"),
        (packed(b"[]"), "no JSON object"),
        (packed(b'{"a": 1, "a": 2}'), "one name occurs twice"),
        (packed({"a": 1}), "tensor a has no type"),
        (packed({"a": {"dtype": "F32", "shape": [2]}}), "tensor a has no type"),
        (packed({"a": tensor(0, 8) | {"data_offsets": [0, 8, 9]}}), "tensor a has no type"),
        (packed({"a": tensor(-8, 0)}), "tensor a has no sound"),
        (packed({"a": tensor(0, 8, shape=(2.0,))}), "tensor a has no sound"),
        (packed({"a": tensor(0, 8, dtype="F99")}, bytes(8)), "tensor a is of the type F99"),
        (packed({"a": tensor(0, 9)}, bytes(9)), r"tensor a of shape \[2\] does not fit into 9 bytes"),
        (packed({"a": tensor(0, 8), "b": tensor(0, 8)}, bytes(8)), "tensors a and b overlap"),
        (packed({"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12)), "tensors a and b overlap"),
        (packed({"a": tensor(0, 8), "b": tensor(12, 20)}, bytes(20)), "4 bytes before tensor b belong to none"),
        (packed({"a": tensor(0, 8)}, bytes(7)), "not a sound safetensors file .7 bytes of tensors .* says 8"),
        (packed({"a": tensor(0, 8)}, bytes(9)), "not a sound safetensors file"),
        (packed({"__metadata__": {"a": 1}}), "metadata are not texts"),
        (pickle.dumps({"a": list(range(1000))}), "this is a pickle.*convert-base"),
    ],
)
def test_an_unsound_file_has_its_sentence(tmp_path, content, said):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(PatinaError, match=said) as caught:
        read_header(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_pickle_by_another_name_is_told_how_to_convert(tmp_path):
    for zipped in (True, False):
        torch.save({"a": torch.zeros(3)}, tmp_path / "bad.safetensors", _use_new_zipfile_serialization=zipped)
        with pytest.raises(PatinaError, match=r"this is a pickle.*convert-base .*bad.safetensors NEW.safetensors"):
            read_header(tmp_path / "bad.safetensors")


def test_a_missing_file_and_a_folder(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(PatinaError, match="there is no such file"):
            read_header(path)
