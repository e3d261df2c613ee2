"""Tables and sidecar files of captions are read as users write them, or refused naming file and line."""

import csv
from pathlib import Path

import pytest

from patina.data.captions import Captioned, find_captions, read_table, write_table
from patina.errors import PatinaError


def table(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    (folder / "metadata.csv").write_bytes(text.encode(encoding))
    return folder / "metadata.csv"


@pytest.mark.parametrize("name", ["filename", "file_name", "IMAGE", "image_path", "Path", "image_file"])
@pytest.mark.parametrize("prompt", ["prompt", "TEXT", "caption", "Captions", "tags"])
def test_the_usual_column_names_are_known(tmp_path, name, prompt):
    assert read_table(table(tmp_path, f"{name},{prompt}\na.png,a cat\n")) == {"a.png": "a cat"}
    assert read_table(table(tmp_path, f"{prompt},{name}\na cat,a.png\n")) == {"a.png": "a cat"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_what_spreadsheets_write_is_read(tmp_path, encoding, line_end):
    lines = ["filename,prompt", '鳥.png,"a bird, ""Amsel"", singing"', "", "b c.png,été"]
    rows = read_table(table(tmp_path, line_end.join(lines), encoding))
    assert rows == {"鳥.png": 'a bird, "Amsel", singing', "b c.png": "été"}


def test_with_two_columns_a_bare_comma_belongs_to_the_prompt(tmp_path):
    text = 'filename,prompt\na.png,ink wash, a crane, 1,000 reeds\nb.png,"quoted, too", then not\n'
    assert read_table(table(tmp_path, text)) == {
        "a.png": "ink wash, a crane, 1,000 reeds",
        "b.png": "quoted, too, then not",
    }
    assert read_table(table(tmp_path, "prompt,filename\nink, a crane,a.png\n")) == {"a.png": "ink, a crane"}


def test_with_more_columns_a_row_that_does_not_fit_is_named(tmp_path):
    good = "file_name,width,text\na.png,512,a cat\n"
    assert read_table(table(tmp_path, good)) == {"a.png": "a cat"}
    with pytest.raises(PatinaError, match=r"metadata\.csv, line 3: 4 fields .* 3 columns .*double quotes"):
        read_table(table(tmp_path, good + "b.png,512,a dog, asleep\n"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"line 1: the file is empty; write filename,prompt there"),
        (
            "name,prompt\na.png,x\n",
            r"line 1: no column is called 'filename', only \['name', 'prompt'\].*filename,prompt",
        ),
        ("filename;prompt\na.png;x\n", r"line 1: .*\['filename;prompt'\].*separated by a comma"),
        ("filename,score\na.png,1\n", r"line 1: no column is called 'prompt'"),
        ("filename,prompt\na.png\n", r"line 2: 1 fields"),
        ("filename,prompt\n,a cat\n", r"line 2: the file name is empty"),
        ("filename,prompt\na.png,x\n\nb.png,y\na.png,z\n", r"line 5: 'a\.png' was captioned in line 2"),
        ("filename,prompt\na.png,x\n./a.png,z\n", r"line 3: 'a\.png' was captioned in line 2"),
        ('filename,prompt\na.png,"x\ny"\nb.png,"never closed\nc.png,z\n', r"line 4: the double quotes"),
        ("filename,prompt\n../a.png,x\n", r"line 2: '\.\./a\.png' leads out"),
        ("filename,prompt\nsub/../../a.png,x\n", r"line 2: .* leads out"),
        ("filename,prompt\n/etc/a.png,x\n", r"line 2: .* leads out"),
        ("filename,prompt\nC:\\a.png,x\n", r"line 2: .* leads out"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, text, words):
    with pytest.raises(PatinaError, match=rf"metadata\.csv, {words}"):
        read_table(table(tmp_path, text))


def test_another_encoding_is_named_with_its_line(tmp_path):
    with pytest.raises(PatinaError, match=r"metadata\.csv, line 3: the text is not UTF-8; save"):
        read_table(table(tmp_path, "filename,prompt\na.png,x\nb.png,été\n", "latin-1"))


def test_backslashes_of_windows_become_slashes(tmp_path):
    assert read_table(table(tmp_path, "filename,prompt\nsub\\a.png,x\n")) == {"sub/a.png": "x"}


def test_what_is_written_is_read_back_by_us_and_by_csv(tmp_path):
    rows = {"a, b.png": 'says "hi", twice', "sub/ü.png": " two\r\n lines\n", "c.png": ""}
    path = tmp_path / "new" / "metadata.csv"
    write_table(path, rows)
    assert read_table(path) == {"a, b.png": 'says "hi", twice', "sub/ü.png": "two lines", "c.png": ""}
    assert b"\r" not in path.read_bytes()
    with path.open(encoding="utf-8", newline="") as stream:
        assert [row["filename"] for row in csv.DictReader(stream)] == list(rows)
    assert [file.name for file in path.parent.iterdir()] == ["metadata.csv"]


def folder_of(tmp_path: Path, *names: str) -> list[Path]:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return [tmp_path / name for name in names]


def test_a_table_captions_the_pictures_that_it_names(tmp_path):
    images = folder_of(tmp_path, "2.png", "10.png", "3.png", "empty.png")
    folder_of(tmp_path, "sub/a.png")
    path = table(tmp_path, "filename,prompt\n10.png,ten\n2.png,two\nempty.png,\nsub/a.png,below\n")
    pairs, uncaptioned = find_captions(images, tmp_path, path)
    assert pairs == [
        Captioned(tmp_path / "2.png", "two"),
        Captioned(tmp_path / "10.png", "ten"),
        Captioned(tmp_path / "sub/a.png", "below"),
    ]
    assert uncaptioned == [tmp_path / "3.png", tmp_path / "empty.png"]


def test_a_row_without_its_file_is_named(tmp_path):
    images = folder_of(tmp_path, "a.png")
    path = table(tmp_path, "filename,prompt\na.png,x\ngone.png,y\nlost.png,z\n")
    with pytest.raises(PatinaError, match=r"line 3: there is no file 'gone\.png' .*and 1 more row"):
        find_captions(images, tmp_path, path)


def test_sidecars_give_all_that_they_say(tmp_path):
    images = folder_of(tmp_path, "a.png", "b.png", "c.png")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf\r\n a cat, asleep \r\nsecond variant\r\n")
    (tmp_path / "b.txt").write_text("\n", encoding="utf-8")
    pairs, uncaptioned = find_captions(images, tmp_path, None)
    assert pairs == [Captioned(tmp_path / "a.png", "a cat, asleep \r\nsecond variant")]
    assert uncaptioned == [tmp_path / "b.png", tmp_path / "c.png"]


def test_a_sidecar_in_another_encoding_is_named(tmp_path):
    images = folder_of(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes("été".encode("latin-1"))
    with pytest.raises(PatinaError, match=r"a\.txt, line 1: the text is not UTF-8"):
        find_captions(images, tmp_path, None)


def test_no_caption_at_all_names_the_command_that_writes_them(tmp_path):
    images = folder_of(tmp_path, "a.png")
    command = r"python tools/auto_label\.py --input .* --output .*metadata\.csv"
    with pytest.raises(PatinaError, match=command):
        find_captions(images, tmp_path, None)
    path = table(tmp_path, "filename,prompt\na.png,\n")
    with pytest.raises(PatinaError, match=rf"no picture of .* has a caption in it; .*{command}"):
        find_captions(images, tmp_path, path)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(PatinaError, match=r"absent\.csv: cannot be read"):
        find_captions(folder_of(tmp_path, "a.png"), tmp_path, tmp_path / "absent.csv")
