"""Captions encoded beforehand train as captions encoded at every step do, and nothing stale or damaged is taken."""

import pytest
import tiny
import torch

from patina.clip import PLAIN, Reading
from patina.data.texts import Texts, encode_texts
from patina.engine.precision import Precision
from patina.errors import PatinaError
from patina.families.sd15 import SD15
from patina.objective import ddpm
from patina.sampling import generate
from patina.tasks.image import ImageTask

LONG = "a red house, " * 30
CAPTIONS = ["a red house, oil painting", LONG, "two fish"]
LONGER = Reading(2, 150)
CPU = torch.device("cpu")
FP32, BF16 = Precision(CPU, torch.float32), Precision(CPU, torch.bfloat16)


def encode(pipe, folder, captions=CAPTIONS, reading=LONGER, precision=FP32) -> Texts:
    return encode_texts(SD15, pipe, captions, reading, precision, folder)


def batch_of(captions: list[str]) -> dict:
    generator = torch.Generator().manual_seed(1)
    return {
        "mean": torch.randn(len(captions), 4, 8, 8, generator=generator),
        "std": torch.ones(len(captions), 4, 8, 8),
        "captions": captions,
        "time_ids": torch.zeros(len(captions), 6),
        "epoch": 0,
        "places": list(range(len(captions))),
    }


def deaf(pipe):
    """The pipeline with a text encoder of whose every answer it could be told."""
    for weight in pipe.text_encoder.parameters():
        torch.nn.init.constant_(weight, torch.nan)
    return pipe


@pytest.mark.parametrize("precision", [FP32, BF16], ids=["fp32", "bf16"])
def test_losses_are_those_of_encoding_at_every_step(tmp_path, precision):
    pipe = tiny.sd15()
    texts = encode(pipe, tmp_path, precision=precision)
    task = ImageTask(SD15, pipe, ddpm(pipe.scheduler), ("unet",), seed=3, reading=LONGER)
    with precision.autocast(), torch.no_grad():
        alone = [(batch_of([caption]), task(task.prepare(batch_of([caption])))) for caption in CAPTIONS]
        together = task(task.prepare(batch_of(CAPTIONS)))
        deaf(pipe)
        for batch, expected in alone:
            assert torch.equal(task(task.prepare(texts.into(batch))), expected)
        # sums over several captions at once go in another order
        torch.testing.assert_close(task(task.prepare(texts.into(batch_of(CAPTIONS)))), together, rtol=1e-3, atol=0)
    assert texts.rows["two fish"]["text"].dtype == precision.dtype


def test_rows_are_as_long_as_the_longest_of_their_batch(tmp_path):
    pipe = tiny.sd15()
    texts = encode(pipe, tmp_path)
    with torch.no_grad():
        for captions in (["two fish", LONG], ["two fish", "two fish"], [""]):
            expected = SD15.encode(pipe, captions, LONGER)["text"]
            torch.testing.assert_close(texts(captions)["text"], expected, rtol=1e-4, atol=1e-5)


def test_what_is_said_of_a_caption_as_a_whole_has_no_length():
    rows = {
        name: {"text": torch.full((77 * chunks, 2), at), "pooled": torch.tensor([at])}
        for name, chunks, at in (("", 1, 0.0), ("a", 1, 1.0), ("b", 3, 2.0))
    }
    cond = Texts(rows)(["a", "b"])
    assert cond["pooled"].tolist() == [[1.0], [2.0]]
    assert cond["text"].shape == (2, 231, 2)
    assert cond["text"][0, :, 0].tolist() == [1.0] * 77 + [0.0] * 154


def test_the_second_time_nothing_is_encoded_and_previews_need_no_encoder(tmp_path):
    pipe = tiny.sd15()
    first = encode(pipe, tmp_path)
    generating = {"size": (64, 64), "steps": 1}
    expected = generate(pipe, ["two fish"], [1], encode=first, **generating)[0]
    entries = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(entries) == 4  # the empty caption too
    again = encode(pipe, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == entries
    for caption, row in first.rows.items():
        assert torch.equal(again.rows[caption]["text"], row["text"])
    assert generate(deaf(pipe), ["two fish"], [1], encode=again, **generating)[0].tobytes() == expected.tobytes()


def test_many_captions_are_packed_and_read_from_there(tmp_path):
    pipe, captions = tiny.sd15(), [f"{at} fish" for at in range(120)]
    first = encode(pipe, tmp_path, captions, PLAIN)
    (shard,) = (path for path in tmp_path.rglob("*") if path.is_file())
    written = shard.stat().st_mtime_ns
    again = encode(pipe, tmp_path, captions, PLAIN)
    assert all(torch.equal(again.rows[caption]["text"], row["text"]) for caption, row in first.rows.items())
    assert [path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()] == [written]


def test_another_encoder_reading_precision_or_tokenizer_is_another_entry(tmp_path):
    def entries(pipe, **other) -> int:
        encode(pipe, tmp_path, ["two fish"], **other)
        return len(list(tmp_path.rglob("*.safetensors")))

    pipe = tiny.sd15()
    assert entries(pipe) == 2
    assert entries(tiny.sd15()) == 2  # the same weights
    assert entries(pipe, reading=PLAIN) == 4
    assert entries(pipe, precision=BF16) == 6
    pipe.tokenizer.pad_token = "!"
    assert entries(pipe) == 8
    with torch.no_grad():
        pipe.text_encoder.final_layer_norm.bias[3] += 1e-3
    assert entries(pipe) == 10


def test_a_damaged_entry_is_made_anew(tmp_path):
    pipe = tiny.sd15()
    expected = encode(pipe, tmp_path, ["two fish"])
    for path in tmp_path.rglob("*.safetensors"):
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)
    assert torch.equal(encode(pipe, tmp_path, ["two fish"])(["two fish"])["text"], expected(["two fish"])["text"])


def test_numbers_that_are_not_finite_name_the_caption(tmp_path):
    pipe = tiny.sd15()
    torch.nn.init.constant_(pipe.text_encoder.final_layer_norm.bias, torch.inf)
    with pytest.raises(PatinaError, match="'two fish' that are not finite"):
        encode(pipe, tmp_path, ["two fish"])
    assert not list(tmp_path.rglob("*.safetensors"))
