"""Without a model, captions come from beside the picture, from within it, from its name, or are the trigger alone."""

import json
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from patina.caption.embedded import find_prompt, plain
from patina.caption.offline import OfflineCaptioner, words_of
from patina.data.images import ImageError

A1111 = (
    "masterpiece, (a red cat:1.2), [dog], <lora:cute:0.8> BREAK by the \\(old\\) sea\n"
    "Negative prompt: blurry, bad\nSteps: 20, Sampler: Euler a, Seed: 1, Size: 512x512"
)
A1111_PLAIN = "masterpiece, a red cat, dog, by the (old) sea"
COMFY = {
    "1": {"class_type": "CLIPTextEncode", "inputs": {"text": "bad, blurry", "clip": ["9", 1]}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"text": ["6", 0], "clip": ["9", 1]}},
    "3": {"class_type": "KSampler", "inputs": {"positive": ["4", 0], "negative": ["1", 0], "seed": 1}},
    "4": {"class_type": "ConditioningCombine", "inputs": {"conditioning_1": ["2", 0], "conditioning_2": ["1", 0]}},
    "6": {"class_type": "String", "inputs": {"value": "two blue birds"}},
}


def png(path: Path, **texts: str) -> Path:
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_itxt(name, text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def photo(path: Path, comment: bytes = b"", description: str = "") -> Path:
    exif = Image.Exif()
    if comment:
        exif.get_ifd(0x8769)[0x9286] = comment
    if description:
        exif[0x010E] = description
    Image.new("RGB", (8, 8)).save(path, exif=exif)
    return path


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ({"parameters": A1111}, A1111_PLAIN),
        ({"parameters": "a cat\nSteps: 20, Sampler: Euler"}, "a cat"),
        ({"parameters": "一只猫, 在海边"}, "一只猫, 在海边"),
        ({"prompt": json.dumps(COMFY)}, "two blue birds"),
        ({"prompt": "{not json"}, ""),
        ({"prompt": json.dumps({"3": {"inputs": {"positive": ["3", 0], "negative": ["3", 0]}}})}, ""),
        ({"prompt": "[1, 2]"}, ""),
        ({"Description": "a dog\n on a hill"}, "a dog on a hill"),
        ({"Comment": '{"steps": 28}'}, ""),
        ({}, ""),
    ],
)
def test_prompts_in_png(tmp_path, texts, expected):
    assert find_prompt(png(tmp_path / "a.png", **texts)) == expected


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
@pytest.mark.parametrize(
    ("comment", "description", "expected"),
    [
        (b"UNICODE\0" + A1111.encode("utf-16-be"), "", A1111_PLAIN),
        (b"UNICODE\0" + A1111.encode("utf-16-le"), "", A1111_PLAIN),
        (b"ASCII\0\0\0" + A1111.encode(), "", A1111_PLAIN),
        (b"", "a dog on a hill", "a dog on a hill"),
        (b"", "OLYMPUS DIGITAL CAMERA", ""),
        (b"JIS\0\0\0\0\0\x12", "", ""),
    ],
)
def test_prompts_in_photos(tmp_path, suffix, comment, description, expected):
    assert find_prompt(photo(tmp_path / f"a.{suffix}", comment, description)) == expected


def test_weights_and_networks_are_taken_out_of_a_prompt():
    assert plain("((cat)), [dog:0.5], {bird} ( owl : -1 )<lora:x:1><hypernet:y:.5>") == "cat, dog, bird owl"


@pytest.mark.parametrize(
    ("stem", "words"),
    [
        ("red_fox-in the  snow (3)", "red fox in the snow"),
        ("RedFoxRuns02", "red fox"),
        ("IMG_20240102_123456", ""),
        ("DSC01234", ""),
        ("deadbeefcafe", ""),
        ("3f2a9c71-9b7e-4c1d-8f00-aaaabbbbcccc", ""),
        ("xkcd", ""),
        ("00012-12345678", ""),
        ("小猫 坐着", "小猫 坐着"),
        ("at", ""),
    ],
)
def test_file_names_are_read_where_they_are_words(stem, words):
    assert words_of(stem) == words


def test_the_nearest_source_wins(tmp_path):
    offline = OfflineCaptioner()
    path = png(tmp_path / "blue_bird.png", parameters="two birds")
    (tmp_path / "blue_bird.caption").write_text("\ufeff\n three birds \nfour", encoding="utf-8")
    assert (offline.read(path).text, offline.read(path).source) == ("three birds", "a text beside it")
    (tmp_path / "blue_bird.caption").unlink()
    assert (offline.read(path).text, offline.read(path).source) == ("two birds", "the prompt in it")
    path = png(tmp_path / "red_bird.png")
    assert (offline.read(path).text, offline.read(path).source) == ("red bird", "its file name")
    path = png(tmp_path / "0001.png")
    assert (offline.read(path).text, offline.read(path).source) == ("", "no text: the trigger alone")
    assert [caption.text for caption in offline.generate([offline.read(path)] * 2)] == ["", ""]


def test_what_is_no_picture_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"a\.png: not a picture of a kind"):
        OfflineCaptioner().read(tmp_path / "a.png")
