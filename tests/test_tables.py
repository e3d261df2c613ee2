"""Tables in other encodings and in JSON are read or refused by line and key, and texts beside pictures fill gaps."""

import json
from pathlib import Path

import pytest

from patina.data.captions import Captioned, find_captions, table_rows
from patina.errors import PatinaError

CHINESE = "filename,prompt\n鹤.png,一只飞过芦苇丛的鹤\n"


def folder_of(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    return [folder / name for name in names]


def rows_of(table: Path) -> dict[str, str]:
    return {row.name: row.prompt for row in table_rows(table, table.parent)}


@pytest.mark.parametrize(
    ("encoding", "said"),
    [("utf-8", []), ("utf-8-sig", []), ("gbk", ["GB18030"]), ("gb18030", ["GB18030"]), ("utf-16", ["UTF-16"])],
)
def test_what_chinese_windows_saves_is_read_and_said(tmp_path, encoding, said):
    images = folder_of(tmp_path, "鹤.png")
    (tmp_path / "metadata.csv").write_bytes(CHINESE.encode(encoding))
    lines: list[str] = []
    pairs, _ = find_captions(images, tmp_path, None, lines.append)
    assert pairs == [Captioned(images[0], "一只飞过芦苇丛的鹤")]
    assert [word for line in lines for word in said if f"read as {word};" in line] == said
    assert len(lines) == len(said) + 1


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("filename,prompt\na.png,a Citroën\n".encode("latin-1"), "line 2: the text is not UTF-8"),
        ("filename,prompt\na.png,été".encode("latin-1"), "line 2: the text is not UTF-8"),
        (b"\xff\xfef", "begins as UTF-16 and is not"),
    ],
)
def test_what_is_in_no_such_encoding_is_refused(tmp_path, data, words):
    (tmp_path / "metadata.csv").write_bytes(data)
    with pytest.raises(PatinaError, match=rf"metadata\.csv.*{words}"):
        rows_of(tmp_path / "metadata.csv")


def test_a_line_of_jsonl_is_a_picture(tmp_path):
    lines = [
        '{"file_name": "a.png", "text": " a cat "}',
        "",
        '{"Image": "sub\\\\b.png", "captions": ["first", "second"]}',
        '{"path": "c.png", "prompt": null, "width": 3}',
    ]
    (tmp_path / "x.jsonl").write_text("\r\n".join(lines), encoding="utf-8")
    assert rows_of(tmp_path / "x.jsonl") == {"a.png": "a cat", "sub/b.png": "first\nsecond", "c.png": ""}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"file_name": "a.png", "text": "x"}\n{"file_name": "a.png"', "line 2: is not JSON"),
        ('["a.png", "x"]', "line 1: is not an object"),
        ('{"name": "a.png", "text": "x"}', "line 1: there is neither filename nor file_name"),
        ('{"file_name": "a.png"}', "line 1: there is neither prompt nor text"),
        ('{"file_name": 3, "text": "x"}', "line 1: the file name is not a text"),
        ('{"file_name": "a.png", "text": [3]}', "line 1: the caption is not a text"),
        ('{"file_name": "a.png", "text": "\\ud800"}', "line 1: the caption holds half a character"),
        ('{"file_name": "../a.png", "text": "x"}', r"line 1: '\.\./a\.png' leads out"),
        ('{"file_name": "/a.png", "text": "x"}', "line 1: '/a.png' leads out"),
        ('{"file_name": "a\\u0000.png", "text": "x"}', "line 1: .* cannot be a file's name"),
        ('{"file_name": "a.png", "text": "x"}\n\n{"file_name": "a.png", "text": "y"}', "line 3: .*captioned in line 1"),
        ('{"a": ' * 100_000, "line 1: is not a table of captions"),
        ('{"file_name": "a.png", "text": ' + "9" * 5000 + "}", "line 1: is not a table of captions"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, text, words):
    (tmp_path / "x.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(PatinaError, match=rf"x\.jsonl, {words}"):
        rows_of(tmp_path / "x.jsonl")


def test_kohyas_json_names_files_or_stems_and_appends_tags(tmp_path):
    folder_of(tmp_path, "a.png", "b.v2.webp", "sub/c.jpg", "d.png")
    table = tmp_path / "meta.json"
    told = {
        "a.png": {"caption": "a cat", "tags": "1cat, ink", "train_resolution": [512, 512]},
        "b.v2": {"tags": ["1bird", "reeds"]},
        "sub/c": {"caption": ["a fish", "another"]},
        "d": "a dog",
        "gone": {},
    }
    table.write_text(json.dumps(told, indent=1), encoding="utf-8")
    assert rows_of(table) == {
        "a.png": "a cat, 1cat, ink",
        "b.v2.webp": "1bird, reeds",
        "sub/c.jpg": "a fish\nanother",
        "d.png": "a dog",
        "gone": "",
    }
    with pytest.raises(PatinaError, match=r"meta\.json, key 'gone': there is no file 'gone'"):
        find_captions([], tmp_path, table)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"a": {"caption": "x"}}, r"key 'a': may be a\.jpg or a\.png; write"),
        ({"a.png": {"caption": 3}}, r"key 'a\.png': the caption is not a text"),
        ({"a.png": {"tags": [3]}}, r"key 'a\.png': the caption is not a text"),
        ({"../a.png": "x"}, "key '../a.png': .* leads out"),
        ({"a.png": "x", "./a.png": "y"}, r"key '\./a\.png': 'a\.png' was captioned in key 'a\.png'"),
        (["a.png"], "line 1: is not an object"),
    ],
)
def test_a_key_that_cannot_be_used_is_named(tmp_path, told, words):
    folder_of(tmp_path, "a.png", "a.jpg")
    (tmp_path / "meta.json").write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(PatinaError, match=rf"meta\.json, {words}"):
        rows_of(tmp_path / "meta.json")


def test_json_that_breaks_off_is_named_by_its_line(tmp_path):
    (tmp_path / "meta.json").write_text('{\n"a.png": "x",\n}', encoding="utf-8")
    with pytest.raises(PatinaError, match=r"meta\.json, line [23]: is not JSON"):
        rows_of(tmp_path / "meta.json")


def test_the_table_wins_and_texts_beside_fill_its_gaps(tmp_path):
    images = folder_of(tmp_path, "a.png", "b.png", "c.png", "d.png", "e.png")
    text = '{"file_name": "a.png", "text": "from the table"}\n{"file_name": "b.png", "text": ""}\n'
    (tmp_path / "metadata.jsonl").write_text(text, encoding="utf-8")
    for name in ("a.txt", "b.txt", "c.caption", "d.caption"):
        (tmp_path / name).write_text(f"beside, {name}", encoding="utf-8")
    (tmp_path / "d.txt").write_text("\n", encoding="utf-8")
    lines: list[str] = []
    pairs, without = find_captions(images, tmp_path, None, lines.append)
    assert [pair.caption for pair in pairs] == [
        "from the table",
        "beside, b.txt",
        "beside, c.caption",
        "beside, d.caption",
    ]
    assert without == [tmp_path / "e.png"]
    assert lines == ["captions: 1 from metadata.jsonl, 1 from .txt files, 2 from .caption files"]


def test_two_tables_among_the_pictures_are_not_guessed_between(tmp_path):
    images = folder_of(tmp_path, "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,x\n", encoding="utf-8")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "y"}', encoding="utf-8")
    with pytest.raises(PatinaError, match=r"holds both metadata\.csv and metadata\.jsonl; .*metadata_path: .*csv"):
        find_captions(images, tmp_path, None)
    pairs, _ = find_captions(images, tmp_path, tmp_path / "metadata.jsonl")
    assert pairs == [Captioned(images[0], "y")]
