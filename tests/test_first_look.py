"""The first second of a training tells what is wrong with the pictures, and stops nothing."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from PIL import Image

from patina.check.first import first_look
from patina.data.buckets import Buckets
from patina.data.captions import Captioned
from patina.pictures import find
from tests.test_run import SMALL, pictures, small

SIZES = Buckets(64, 8)


def made(folder: Path, name: str, caption: str, size: tuple[int, int] = (64, 64), colour: int = 0) -> Captioned:
    folder.mkdir(exist_ok=True)
    Image.new("RGB", size, (colour, 0, 0)).save(folder / name)
    return Captioned(folder / name, caption)


def test_a_set_without_trouble_is_not_spoken_of(tmp_path) -> None:
    said = ("a red house", "two cats asleep", "the sea at noon")
    whole = [made(tmp_path, f"{n}.png", f"ink, {words}", colour=n) for n, words in enumerate(said)]
    assert first_look(tmp_path, whole, SIZES, "ink") == []


def test_each_trouble_is_a_line_with_names_and_what_to_do(tmp_path) -> None:
    good = made(tmp_path, "a.png", "ink, a red house", colour=1)
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
    (tmp_path / "photo.HEIC").write_bytes(b"heif")
    found = first_look(
        tmp_path,
        [
            good,
            Captioned(tmp_path / "b.png", "ink, another house"),
            made(tmp_path, "c.png", "ink, a Red  house", colour=3),
            made(tmp_path, "d.png", "ink", colour=4),
            made(tmp_path, "e.png", "ink, a fish in the style of Hokusai", colour=5),
            made(tmp_path, "f.png", "ink, a tiny dog", size=(20, 24), colour=6),
            made(tmp_path, "g.png", "ink, a bottle of Ink", colour=7),
            made(tmp_path, "h.png", "ink, a road", size=(260, 64), colour=8),
            made(tmp_path, "j.png", "ink, a long road", size=(300, 64), colour=11),
            made(tmp_path, "i.png", "ink, inks of two colours", colour=9),
        ],
        SIZES,
        "ink",
    )
    assert found == [
        "look      1 picture is there twice (b.png = a.png): delete one of the two",
        "look      1 picture has no caption of its own (d.png): write what is in it",
        "look      1 picture is captioned as another is (c.png): say what tells them apart",
        "look      1 picture has words of style in its caption (e.png): leave those out",
        "look      1 picture has the trigger word again further on in its caption (g.png): leave it to the front alone",
        "look      1 picture has less than half of the resolution's pixels (f.png): find a larger one",
        "look      2 pictures lose more than 20% to the shape they are cut to (j.png, h.png): crop them yourself",
        "look      1 picture is of a kind that is not read (photo.HEIC): save it as PNG",
    ]


def test_all_captions_of_a_picture_are_looked_at(tmp_path) -> None:
    said = ("ink, a red house\nink, a wall in the sun", "ink, two cats\nink, a Wall in the sun\nink", "ink\nink")
    whole = [made(tmp_path, f"{n}.png", lines, colour=n) for n, lines in enumerate(said)]
    whole += [made(tmp_path, "x.png", "ink, the sea\nink, in ink\nink, waves in the style of Hokusai", colour=9)]
    whole += [made(tmp_path, "y.png", "ink, a rock\nink, in the style of Turner, ink", colour=10)]
    assert first_look(tmp_path, whole, SIZES, "ink") == [
        "look      1 picture has no caption of its own (2.png): write what is in it",
        "look      1 picture is captioned as another is (1.png): say what tells them apart",
        "look      2 pictures have words of style in their captions (x.png, y.png): leave those out",
        "look      2 pictures have the trigger word again further on in their captions (x.png, y.png): "
        "leave it to the front alone",
    ]


def test_a_run_says_it_before_anything_is_loaded(tmp_path, monkeypatch, capsys) -> None:
    pictures(tmp_path / "pictures", count=4)
    (tmp_path / "run.yaml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    first = sorted((tmp_path / "pictures").glob("*.png"))[0]
    for number, other in enumerate(sorted((tmp_path / "pictures").glob("*.png"))[1:3]):
        shutil.copy(first, other)
        assert number < 2
    assert len(find(small()).trained) == 4
    assert "look      2 pictures are there twice (" in capsys.readouterr().out


def test_shapes_are_those_of_the_run(tmp_path, monkeypatch, capsys) -> None:
    """A square of it has few pixels and loses its sides, or is enlarged; a bucket of its own shape does neither."""
    pictures(tmp_path / "pictures", count=1)
    Image.new("RGB", (70, 46)).save(tmp_path / "pictures" / "00.png")
    (tmp_path / "run.yaml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    find(small())
    assert "look " not in capsys.readouterr().out
    find(small("dataset.buckets=false"))
    said = capsys.readouterr().out
    assert "look      1 picture has less than half of the resolution's pixels (00.png)" in said
    assert "enlarged" not in said
    assert "look      1 picture loses more than 20% to the shape it is cut to (00.png)" in said
    find(small("dataset.buckets=false", "dataset.upscale=true", "resolution=128"))
    said = capsys.readouterr().out
    assert "look      1 picture is enlarged more than 2 times (00.png)" in said
    assert "half of" not in said


@contextmanager
def unprivileged() -> Iterator[None]:
    """As somebody other than root, who may read everything."""
    if os.getuid() == 0:
        os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        if os.getresuid()[2] == 0:
            os.setresuid(0, 0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets root be somebody else for a while")
def test_what_one_may_not_read_is_left_to_the_run() -> None:
    with TemporaryDirectory() as name:  # pytest's own folder is root's alone
        folder = Path(name)
        folder.chmod(0o755)
        whole = [made(folder, f"{n}.png", f"ink, a {thing}") for n, thing in enumerate(("boat", "bird", "cat"))]
        whole[1].path.chmod(0)
        with unprivileged():
            found = first_look(folder, whole, SIZES, "ink")
    assert found == ["look      1 picture is there twice (2.png = 0.png): delete one of the two"]


def test_folders_below_are_told_apart_and_what_cannot_be_read_is_left_to_the_run(tmp_path) -> None:
    below = [made(tmp_path / part, "1.png", "ink, a boat", colour=n) for n, part in enumerate(("10_a", "5_b"))]
    (tmp_path / "5_b" / "2.jp2").write_bytes(b"jp2")
    missing = Captioned(tmp_path / "gone.png", "ink, a bird")
    assert first_look(tmp_path, [*below, missing], SIZES, "ink") == [
        "look      1 picture is captioned as another is (5_b/1.png): say what tells them apart",
        "look      1 picture is of a kind that is not read (5_b/2.jp2): save it as PNG",
    ]
