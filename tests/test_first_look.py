"""The first second of a training tells what is wrong with the pictures, and stops nothing."""

import shutil
from pathlib import Path

from PIL import Image

from patina.check.first import first_look
from patina.data.buckets import bucket_sizes
from patina.data.captions import Captioned
from patina.pictures import find
from tests.test_run import SMALL, pictures, small

SIZES = bucket_sizes(64, 8)


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
        ],
        SIZES,
        "ink",
    )
    assert found == [
        "look      1 pictures are there twice (b.png = a.png): delete one of each",
        "look      1 pictures have no caption of their own (d.png): write what is in them",
        "look      1 pictures are captioned as another is (c.png): say what tells them apart",
        "look      1 pictures have words of style in their captions (e.png): leave those out",
        "look      1 pictures are enlarged more than 2 times (f.png): find larger ones",
        "look      1 pictures are of kinds that are not read (photo.HEIC): save them as PNG",
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


def test_folders_below_are_told_apart_and_what_cannot_be_read_is_left_to_the_run(tmp_path) -> None:
    below = [made(tmp_path / part, "1.png", "ink, a boat", colour=n) for n, part in enumerate(("10_a", "5_b"))]
    (tmp_path / "5_b" / "2.jp2").write_bytes(b"jp2")
    missing = Captioned(tmp_path / "gone.png", "ink, a bird")
    assert first_look(tmp_path, [*below, missing], SIZES, "ink") == [
        "look      1 pictures are captioned as another is (5_b/1.png): say what tells them apart",
        "look      1 pictures are of kinds that are not read (5_b/2.jp2): save them as PNG",
    ]
