"""Kohya's folders are told from flat ones, and what is left out of either is said."""

from pathlib import Path

import pytest

from patina.data.folders import captioned_pictures, find_parts
from patina.errors import PatinaError


def folder_of(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    return folder


def test_folders_are_in_natural_order_with_repeats_and_name(tmp_path):
    folder_of(
        tmp_path, "10_b c/2.png", "10_b c/10.png", "9_a_d/x.jpg", ".5_hidden/x.png", "5_empty/x.txt", "0_no/x.png"
    )
    said: list[str] = []
    parts = find_parts(tmp_path, said.append)
    assert [(part.folder.name, part.repeats, part.caption) for part in parts] == [
        ("9_a_d", 9, "a_d"),
        ("10_b c", 10, "b c"),
    ]
    assert [path.name for path in parts[1].images] == ["2.png", "10.png"]
    assert [line.removeprefix(f"{tmp_path}: ").split(";")[0] for line in said] == [
        "no picture lies in 5_empty",
        "the pictures in 0_no are left out, as its name is not like 10_NAME",
        "pictures of 9_a_d (1), 10_b c (2)",
    ]


def test_a_table_of_the_whole_folder_names_pictures_below_it(tmp_path):
    folder_of(tmp_path, "2_a/x.png", "2_a/y.png", "other/z.png")
    (tmp_path / "metadata.csv").write_text("filename,prompt\n2_a/y.png,said\nother/z.png,too\n", encoding="utf-8")
    pairs = captioned_pictures(tmp_path, None, str)
    assert [(pair.path.name, pair.caption, pair.repeats, pair.folder) for pair in pairs] == [
        ("x.png", "a", 2, tmp_path / "2_a"),
        ("y.png", "said", 2, tmp_path / "2_a"),
        ("z.png", "too", 1, tmp_path),
    ]


def test_a_folder_with_pictures_of_its_own_stays_flat(tmp_path):
    folder_of(tmp_path, "a.png", "10_b/b.png", "more/c.png")
    (tmp_path / "a.txt").write_text("a cat", encoding="utf-8")
    said: list[str] = []
    (pair,) = captioned_pictures(tmp_path, None, said.append)
    assert (pair.path.name, pair.repeats, pair.folder) == ("a.png", 1, tmp_path)
    assert said[0].startswith(f"{tmp_path}: holds pictures itself, so that those in 10_b are left out; ")


def test_pictures_without_a_caption_are_listed(tmp_path):
    folder_of(tmp_path, *(f"{number}.png" for number in range(5)))
    (tmp_path / "0.txt").write_text("x", encoding="utf-8")
    said: list[str] = []
    captioned_pictures(tmp_path, None, said.append)
    assert said[-1] == "4 of 5 pictures have no caption and are left out: 1.png, 2.png, 3.png, ..."
    (tmp_path / "4.txt").write_text("x", encoding="utf-8")
    captioned_pictures(tmp_path, None, said.append)
    assert said[-1] == "3 of 5 pictures have no caption and are left out: 1.png, 2.png, 3.png"


def test_where_there_is_no_picture_the_remedy_fits_a_run(tmp_path):
    with pytest.raises(PatinaError, match="no such folder"):
        find_parts(tmp_path / "absent")
    with pytest.raises(PatinaError, match="no picture in this folder"):
        find_parts(folder_of(tmp_path, "10_a/x.txt"))
    with pytest.raises(PatinaError, match=r"but 1 below it; move them up, or name their folders as 10_NAME"):
        find_parts(folder_of(tmp_path, "sub/a.png"))


@pytest.mark.parametrize("name", ["set/a.png", "set/a.txt", "set/a.caption", "set/metadata.csv", "set/2_b"])
def test_links_out_of_the_folder_are_refused_unless_allowed(tmp_path, name):
    folder = folder_of(tmp_path, "set/x.txt").joinpath("set")
    told = {"a.png": "", "a.txt": "secret", "a.caption": "secret", "metadata.csv": "filename,prompt\na.png,secret\n"}
    link = tmp_path / name
    (tmp_path / "elsewhere").mkdir()
    if link.name == "2_b":
        (tmp_path / "elsewhere/b.png").touch()
        link.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    else:
        folder_of(tmp_path, "set/a.png")
        link.unlink(missing_ok=True)
        (tmp_path / "elsewhere/it").write_text(told[link.name], encoding="utf-8")
        link.symlink_to(tmp_path / "elsewhere/it")
    with pytest.raises(PatinaError, match=rf"{link.name}.*: is a link, or lies in one, .*dataset\.allow_links: true"):
        captioned_pictures(folder, None, str)
    if link.name == "a.png":
        (folder / "a.txt").write_text("a cat", encoding="utf-8")
    assert len(captioned_pictures(folder, None, str, allow_links=True)) == 1


def test_a_table_names_no_picture_through_a_link_and_links_within_are_fine(tmp_path):
    folder_of(tmp_path, "out/b.png", "set/a.png")
    folder = tmp_path / "set"
    (folder / "c.png").symlink_to("a.png")
    (folder / "a.txt").symlink_to("a.txt")  # leads nowhere
    (folder / "more").symlink_to(tmp_path / "out", target_is_directory=True)
    table = folder / "metadata.csv"
    table.write_text("filename,prompt\na.png,x\nc.png,y\n", encoding="utf-8")
    (tmp_path / "way").symlink_to(folder, target_is_directory=True)
    assert len(captioned_pictures(tmp_path / "way", None, str)) == 2
    table.write_text("filename,prompt\na.png,x\nmore/b.png,y\n", encoding="utf-8")
    with pytest.raises(PatinaError, match=r"more/b\.png: is a link, or lies in one"):
        captioned_pictures(folder, None, str)
