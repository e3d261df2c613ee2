"""Questions and answers are read from every kind of file that people keep them in, or refused naming the cell."""

import contextlib
import csv
import io
import json
import random
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from pathlib import Path
from time import process_time

import openpyxl
import pytest
from openpyxl.worksheet.worksheet import Worksheet

from patina.errors import PatinaError
from patina.text import sheetmarks, xlsx
from patina.text.read import READERS, Reading, read, read_rows
from patina.text.shown import shown

Pairs = list[tuple[str, str]]
PAIRS = [
    ("怎么退货？", "七天内可以退，\n请保留包装。"),
    ("How, then?", 'Say "please", twice.'),
    ("多少钱；含税吗", "12.50 元"),
    ("été | 夏", "{'a': 1}\tb"),
]
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "gb18030")


def pairs_of(reading: Reading) -> Pairs:
    assert all([turn.role for turn in row.turns] == ["user", "assistant"] for row in reading.rows)
    return [(row.turns[0].text, row.turns[1].text) for row in reading.rows]


def write_xlsx(path: Path, pairs: Pairs, encoding: str) -> None:
    book = openpyxl.Workbook()
    sheet = sheet_of(book)
    for row in [("问题", "答案"), *pairs]:
        sheet.append(row)
    book.save(path)


def sheet_of(book: openpyxl.Workbook) -> Worksheet:
    assert isinstance(book.active, Worksheet)
    return book.active


def write_separated(separator: str) -> Callable[[Path, Pairs, str], None]:
    def write(path: Path, pairs: Pairs, encoding: str) -> None:
        text = io.StringIO()
        csv.writer(text, delimiter=separator).writerows([("问题", "答案"), *pairs])
        path.write_bytes(text.getvalue().encode(encoding))

    return write


def write_jsonl(path: Path, pairs: Pairs, encoding: str) -> None:
    lines = [json.dumps({"question": q, "answer": a}, ensure_ascii=False) for q, a in pairs]
    path.write_bytes("\n\n".join(lines).encode(encoding))


def write_json(path: Path, pairs: Pairs, encoding: str) -> None:
    rows = [{"instruction": q, "input": "", "output": a} for q, a in pairs]
    path.write_bytes(json.dumps(rows, ensure_ascii=False, indent=1).encode(encoding))


def write_blocks(path: Path, pairs: Pairs, encoding: str) -> None:
    path.write_bytes("\r\n\r\n".join(f"问：{q}\r\n答：{a}" for q, a in pairs).encode(encoding))


WRITERS: Mapping[str, Callable[[Path, Pairs, str], None]] = {
    "set.xlsx": write_xlsx,
    "set.csv": write_separated(","),
    "semicolons.csv": write_separated(";"),
    "set.tsv": write_separated("\t"),
    "set.jsonl": write_jsonl,
    "set.json": write_json,
    "set.txt": write_blocks,
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", WRITERS)
def test_each_format_in_each_encoding_gives_the_same_rows(tmp_path, name, encoding):
    WRITERS[name](tmp_path / name, PAIRS, encoding)
    assert pairs_of(read(tmp_path / name)) == PAIRS


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", WRITERS)
def test_what_is_written_in_a_format_is_read_back(tmp_path, name, seed):
    dice = random.Random(seed)
    letters = "abz 019,;|\"'“”，。？！问答：:{}[]\\/<>&%=+-_é漢字𠮷😀\u2028" + ("\n" if name != "set.txt" else "")

    def text() -> str:
        core = "".join(dice.choices(letters, k=dice.randint(0, 40)))
        return f"甲{core.replace('_x', '')}z"

    pairs = [(text(), text()) for _ in range(30)]
    WRITERS[name](tmp_path / name, pairs, "utf-8")
    assert pairs_of(read(tmp_path / name)) == pairs


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("set.xlsx", "set.xlsx Sheet!A3"),
        ("set.csv", "set.csv:4 column A"),
        ("set.jsonl", "set.jsonl:3"),
        ("set.json", "set.json[1]"),
        ("set.txt", "set.txt:5"),
    ],
)
def test_places_name_the_cell_the_line_or_the_index(tmp_path, name, place):
    WRITERS[name](tmp_path / name, PAIRS, "utf-8")
    assert read_rows(tmp_path / name)[1].place == place


def test_a_folder_is_read_in_natural_order_and_says_what_it_passes_over(tmp_path):
    for name in ("10.jsonl", "2.jsonl"):
        write_jsonl(tmp_path / name, [(name, "x")], "utf-8")
    for name in ("README.md", ".hidden.txt", "~$2.xlsx", "a.png", "dataset_info.json"):
        (tmp_path / name).write_text("{}")
    reading = read(tmp_path)
    assert [question for question, _ in pairs_of(reading)] == ["2.jsonl", "10.jsonl"]
    assert any(all(name in note for name in ("a.png", "README.md", "dataset_info.json")) for note in reading.notes)


def test_the_encoding_is_said(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", PAIRS, "gb18030")
    assert "a.jsonl: GBK/GB18030" in read(tmp_path / "a.jsonl").notes


# Workbooks as people make them


def workbook(path: Path, **sheets: list[tuple[object, ...]]) -> openpyxl.Workbook:
    book = openpyxl.Workbook()
    book.remove(sheet_of(book))
    for title, rows in sheets.items():
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return book


def test_all_sheets_are_read_hidden_ones_said_and_those_of_something_else_left_out(tmp_path):
    path = tmp_path / "问答.xlsx"
    head = ("序号", "问题", "答案")
    book = workbook(path, 表1=[head, (1, "a", "b")], 表2=[head, (1, "c", "d")], 说明=[("怎么用",), ("先读",)], 空=[])
    book["表2"].sheet_state = "hidden"
    book.save(path)
    reading = read(path)
    assert [(row.turns[0].text, row.place) for row in reading.rows] == [
        ("a", "问答.xlsx 表1!B2"),
        ("c", "问答.xlsx 表2!B2"),
    ]
    assert "问答.xlsx 表2: this sheet is hidden and was read like the others" in reading.notes
    assert any(note.startswith("问答.xlsx 说明: left out") for note in reading.notes)
    assert "问答.xlsx 表1: not used: 序号" in reading.notes


def test_titles_above_the_headings_merged_cells_and_empty_rows(tmp_path):
    path = tmp_path / "m.xlsx"
    rows = [("客服问答表", None, None), (None,), ("序号", "问题", "答案"), (1, "一问", "一答"), (2, None, "二答")]
    book = workbook(path, 表=[*rows, (None, None, None), (3, None, None), (4, "三问", "三答")])
    book["表"].merge_cells("A1:C1")
    book["表"].merge_cells("B4:B5")
    book.save(path)
    reading = read(path)
    assert pairs_of(reading) == [("一问", "一答"), ("一问", "二答"), ("三问", "三答")]
    assert [row.place for row in reading.rows] == ["m.xlsx 表!B4", "m.xlsx 表!B5", "m.xlsx 表!B8"]
    assert "m.xlsx 表: the text of a merged cell counts for each of its rows" in reading.notes
    assert "m.xlsx 表: rows without question and answer left out: 1" in reading.notes


def test_texts_under_no_heading_are_not_used_and_it_is_said(tmp_path):
    workbook(tmp_path / "a.xlsx", 表=[("问题", None, "答案"), ("q", "?", "a"), ("q2", None, "a2", "!")])
    reading = read(tmp_path / "a.xlsx")
    assert pairs_of(reading) == [("q", "a"), ("q2", "a2")]
    assert "a.xlsx 表: not used: column B, which has no heading" in reading.notes
    assert "a.xlsx 表: not used: column D, which has no heading" in reading.notes
    assert not any("column A" in note or "column C" in note for note in reading.notes)


def test_numbers_and_dates_are_read_as_the_sheet_shows_them(tmp_path):
    path = tmp_path / "n.xlsx"
    cells: list[tuple[object, str, str]] = [
        (12.5, '"¥"#,##0.00', "¥12.50"),
        (date(2024, 3, 5), 'yyyy"年"m"月"d"日"', "2024年3月5日"),
        (0.256, "0.0%", "25.6%"),
        (13800138000, "General", "13800138000"),
        (True, "General", "TRUE"),
    ]
    book = workbook(path, 表=[("问题", "答案"), *[(f"q{at}", cell[0]) for at, cell in enumerate(cells)]])
    for at, (_, pattern, _) in enumerate(cells):
        book["表"].cell(at + 2, 2).number_format = pattern
    book.save(path)
    assert [answer for _, answer in pairs_of(read(path))] == [text for _, _, text in cells]


@pytest.mark.parametrize(
    ("value", "pattern", "text"),
    [
        (3, "General", "3"),
        (0.1 + 0.2, "General", "0.3"),
        (1e-7, "General", "1E-07"),
        (-3, "#,##0_);(#,##0)", "(3)"),
        (-3.25, "0.0", "-3.3"),
        (1.2, "0.##", "1.2"),
        (7, "00000", "00007"),
        (1234567, "#,##0,", "1,235"),
        (12.5, "[$¥-804]#,##0.00", "¥12.50"),
        (5, "@", "5"),
        (0, '0;-0;"-"', "-"),
        (datetime(2024, 3, 5, 14, 7, 9), "yyyy/m/d h:mm", "2024/3/5 14:07"),
        (datetime(2024, 3, 5, 14, 7, 9), "h:mm:ss AM/PM", "2:07:09 PM"),
        (datetime(2024, 3, 5), "mm-dd-yy", "2024/3/5"),
        (datetime(2024, 3, 5), "d-mmm-yy", "5-Mar-24"),
        (time(9, 5), "hh:mm", "09:05"),
        (timedelta(hours=30, minutes=5), "[h]:mm:ss", "30:05:00"),
        ("a_x000D_\nb", "General", "a\nb"),
    ],
)
def test_number_formats(value, pattern, text):
    assert shown(value, pattern) == text


def test_a_formula_gives_what_the_spreadsheet_computed(tmp_path):
    path = tmp_path / "f.xlsx"
    workbook(path, 表=[("问题", "答案"), ("q", "=1+1")])
    with pytest.raises(PatinaError, match=r"f\.xlsx 表!B2: the cell holds a formula that no spreadsheet has computed"):
        read(path)
    edit(path, "xl/worksheets/sheet1.xml", rb"<f>1\+1</f><v(></v>| ?/>)", b"<f>1+1</f><v>2</v>")
    assert pairs_of(read(path)) == [("q", "2")]
    edit(path, "xl/worksheets/sheet1.xml", rb'<c r="B2"><f>1\+1</f><v>2</v>', b'<c r="B2" t="e"><f>1+1</f><v>#N/A</v>')
    with pytest.raises(PatinaError, match=r"f\.xlsx 表!B2: the cell shows the error #N/A"):
        read(path)


def edit(path: Path, part: str, old: bytes, new: bytes) -> None:
    """Change a part of a workbook as only another program would; `old` is a regular expression."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts[part], found = re.subn(old, new, parts[part])
    assert found
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


def test_an_error_in_a_column_that_nobody_reads_is_no_fault(tmp_path):
    workbook(tmp_path / "f.xlsx", 表=[("问题", "答案", "字数"), ("q", "a", "=LEN(B2)")])
    assert pairs_of(read(tmp_path / "f.xlsx")) == [("q", "a")]


def test_a_zip_bomb_gets_a_sentence_before_it_is_unpacked(tmp_path):
    path = tmp_path / "bomb.xlsx"
    write_xlsx(path, PAIRS, "")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("xl/huge.xml", "w") as part:
        for _ in range(xlsx.MOST_UNPACKED >> 23):
            part.write(bytes(1 << 23))
    with pytest.raises(PatinaError, match=r"bomb\.xlsx: unpacks to 51\d MB, more than 512"):
        read(path)


def test_more_cells_than_the_bound_get_a_sentence(tmp_path, monkeypatch):
    write_xlsx(tmp_path / "a.xlsx", PAIRS, "")
    monkeypatch.setattr(sheetmarks, "MOST_CELLS", 5)
    with pytest.raises(PatinaError, match=r"a\.xlsx Sheet: holds more than 5 cells"):
        read(tmp_path / "a.xlsx")


def test_a_row_far_below_the_last_does_not_make_a_million_rows(tmp_path):
    write_xlsx(tmp_path / "a.xlsx", PAIRS, "")
    edit(tmp_path / "a.xlsx", "xl/worksheets/sheet1.xml", b'<row r="5"', b'<row r="999999999"')
    with pytest.raises(PatinaError, match=r"a\.xlsx Sheet: holds more than .* 1,048,576 rows"):
        read(tmp_path / "a.xlsx")


def test_a_cell_in_the_last_row_is_read_without_looking_through_a_million(tmp_path):
    write_xlsx(tmp_path / "a.xlsx", PAIRS, "")
    edit(tmp_path / "a.xlsx", "xl/worksheets/sheet1.xml", b'<row r="5"', b'<row r="1048576"')
    began = process_time()
    assert len(read(tmp_path / "a.xlsx").rows) == len(PAIRS)
    assert process_time() - began < 20  # two or three; eighty where each is looked at cell by cell


def test_reading_a_workbook_leaves_the_callers_warnings_as_they_were(tmp_path):
    write_xlsx(tmp_path / "a.xlsx", PAIRS, "")
    before = list(warnings.filters)
    read(tmp_path / "a.xlsx")
    assert list(warnings.filters) == before


# Text files as people write them


def test_lines_with_one_separator_are_pairs(tmp_path):
    for separator in ("\t", "|||", "=>", "|"):
        (tmp_path / "a.txt").write_text(f"q 1{separator}a 1\n\nq2 {separator} a2\n", encoding="utf-8")
        assert pairs_of(read(tmp_path / "a.txt")) == [("q 1", "a 1"), ("q2", "a2")]
    (tmp_path / "a.txt").write_text("问题\t答案\nq\ta\n", encoding="utf-8")
    assert pairs_of(read(tmp_path / "a.txt")) == [("q", "a")]


MARKS = [("问：", "答："), ("Q: ", "A: "), ("用户:", "助手:"), ("User: ", "Assistant: "), ("问题1：", "答案1：")]


@pytest.mark.parametrize(("ask", "say"), MARKS)
def test_blocks_with_markers_are_conversations_kept_multi_turn(tmp_path, ask, say):
    text = f"{ask}a\n{say}b\n{ask}c\n{say}d\nd2\n\nd3\n\n{ask}e\n\n{say}f\n"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    talks = [[turn.text for turn in row.turns] for row in read_rows(tmp_path / "a.txt")]
    assert talks == [["a", "b", "c", "d\nd2\n\nd3"], ["e", "f"]]
    assert [row.place for row in read_rows(tmp_path / "a.txt")] == ["a.txt:1", "a.txt:9"]


def test_a_system_text_belongs_to_the_conversation_below_it(tmp_path):
    (tmp_path / "a.txt").write_text("系统：礼貌\n\n问：a\n答：b\n\n问：c\n答：d\n", encoding="utf-8")
    talks = [[turn.text for turn in row.turns] for row in read_rows(tmp_path / "a.txt")]
    assert talks == [["礼貌", "a", "b"], ["c", "d"]]


def test_without_blank_lines_each_pair_is_its_own_and_it_is_said(tmp_path):
    (tmp_path / "a.txt").write_text("系统：礼貌\n问：a\n答：b\n问：c\n答：d\n", encoding="utf-8")
    reading = read(tmp_path / "a.txt")
    assert [[turn.text for turn in row.turns] for row in reading.rows] == [["礼貌", "a", "b"], ["c", "d"]]
    assert any("no blank lines" in note for note in reading.notes)


def test_markdown_is_raw_text(tmp_path):
    (tmp_path / "a.md").write_text("\n# 题\n\n正文 | x\n", encoding="utf-8")
    (row,) = read_rows(tmp_path / "a.md")
    assert (row.turns, row.text, row.place) == ((), "# 题\n\n正文 | x", "a.md")


# Faults

JSON_ROW = '{"question": "q", "answer": "a"}'
BROKEN: list[tuple[str, str | bytes, str]] = [
    ("a.csv", "问题,答案\n甲,\n", r"a\.csv:2 column B: the answer is empty; write one or delete the row"),
    ("a.csv", "问题,答案\n,乙\n", r"a\.csv:2 column A: the question is empty"),
    ("a.csv", "问题,答案\n甲,a,b\n", r"a\.csv:2: has 3 fields where line 1 names 2; .*double quotes"),
    ("a.csv", '问题,答案\n甲,"没有结束\n', r"a\.csv:2: the double quotes do not match up"),
    (
        "a.csv",
        "标题,摘要,正文\n天,地,人\n",
        r"headings are 标题, 摘要, 正文; write text\.columns: \[question=HEADING, answer=HEADING\]",
    ),
    ("a.csv", "问题,答案,答案\n甲,乙,丙\n", r"a\.csv: two columns are called 答案"),
    ("a.csv", "", r"a\.csv: there are no rows in it"),
    ("a.csv", "问题,答案\n", r"a\.csv: there are no rows in it"),
    ("a.csv", b"PK\x03\x04rest", r"a\.csv: is not what its suffix says, but an Excel workbook"),
    ("a.csv", "问题,答案\n甲,乙\n".encode("utf-16-le"), r"a\.csv: holds zero bytes.*UTF-16 without its mark"),
    ("a.csv", "question,answer\nq,caf\xe9 au lait\n".encode("latin-1"), r"a\.csv:2: the text is neither UTF-8 nor GBK"),
    ("a.csv", "question,answer\nq,\ue000\n".encode("gb18030"), r"a\.csv:2: the text is neither UTF-8 nor GBK"),
    ("a.csv", b"\xff\xfe\x00\xd8\x00\x00", r"a\.csv: begins as UTF-16 does and goes on otherwise"),
    ("a.jsonl", f'{JSON_ROW}\n{{"question": "q" "answer"}}\n', r"a\.jsonl:2:18: broken JSON .*'\"'"),
    ("a.jsonl", "{'question': 'q'}\n", r"a\.jsonl:1:2: broken JSON .*straight double quotes"),
    ("a.jsonl", '{"question": "q\n', r"a\.jsonl:1:14: broken JSON .*too early"),
    ("a.jsonl", f'{JSON_ROW}\n{{"question": "q"}}\n', r"a\.jsonl:2: the key 'answer' is missing, there are question"),
    ("a.jsonl", '{"question": "q", "answer": 5}', r"a\.jsonl:1, key answer: the answer is a number, not a text"),
    ("a.jsonl", '{"question": "q", "answer": null}', r"a\.jsonl:1, key answer: the answer is empty"),
    ("a.jsonl", '{"question": "q", "answer": {"a": 1}}', r"key answer: the answer is an object, not a text"),
    ("a.jsonl", r'{"question": "q", "answer": "\ud83d"}', r"the answer holds half a character \(\\ud83d\)"),
    ("a.jsonl", '"q"\n', r"a\.jsonl:1: is not an object"),
    ("a.jsonl", f"[{JSON_ROW},\n{JSON_ROW}]", r"a\.jsonl: is one JSON list.*rename it to a\.json$"),
    ("a.json", f"{JSON_ROW}\n{JSON_ROW}\n", r"a\.json: is one object a line.*rename it to a\.jsonl"),
    ("a.json", f"[{JSON_ROW},\n]", r"a\.json:[12]:\d+: broken JSON"),
    ("a.json", '{"a": [{"x": 1}], "b": [{"x": 1}]}', r"a\.json: must be one list of examples, and holds 2"),
    ("a.json", "[" * 100_000, r"a\.json: broken JSON"),
    ("a.json", f"[{JSON_ROW}, 5]", r"a\.json\[1\]: is not an object"),
    ("a.txt", "从前有座山\n山里有座庙\n", r"a\.txt: nothing tells questions from answers; write one question"),
    ("a.txt", "q\ta\nno tab\n", r"a\.txt:2: has no separators \(a tab\); write exactly one"),
    ("a.txt", "问：甲\n\n问：乙\n答：丙\n", r"a\.txt:1: the last question has no answer"),
    ("a.txt", f"[{JSON_ROW}]", r"a\.txt: holds JSON; rename it to a\.json"),
    ("a.txt", "前言\n问：甲\n答：丙\n", r"a\.txt:1: stands before the first question"),
    ("a.xls", b"\xd0\xcf\x11\xe0", r"a\.xls: files of the kind \.xls are not read; open it in Excel or WPS and save"),
    ("a.ods", b"PK", r"\.ods are not read; open it in LibreOffice and save it as \.xlsx"),
    ("a.docx", b"PK", r"\.docx are not read; open it in Word and save it as plain text"),
    ("a.parquet", b"PAR1", r"\.parquet are not read; save it as \.jsonl"),
    ("a.xlsx", b"\xd0\xcf\x11\xe0", r"a\.xlsx: is an old \.xls, or locked with a password"),
    ("a.xlsx", "问题,答案\n".encode(), r"a\.xlsx: is no Excel workbook"),
    ("a.md", "  \n", r"a\.md: there are no rows in it"),
]


@pytest.mark.parametrize(("name", "content", "words"), BROKEN, ids=[f"{at}-{row[0]}" for at, row in enumerate(BROKEN)])
def test_broken_files_each_give_their_sentence(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(PatinaError, match=words):
        read(tmp_path / name)


def test_a_workbook_that_was_cut_off_or_is_another_zip_gets_a_sentence(tmp_path):
    write_xlsx(tmp_path / "a.xlsx", PAIRS, "")
    whole = (tmp_path / "a.xlsx").read_bytes()
    (tmp_path / "a.xlsx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PatinaError, match=r"a\.xlsx: is no Excel workbook"):
        read(tmp_path / "a.xlsx")
    with zipfile.ZipFile(tmp_path / "a.xlsx", "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(PatinaError, match=r"a\.xlsx: is no Excel workbook or a damaged one"):
        read(tmp_path / "a.xlsx")


@pytest.mark.parametrize("seed", range(20))
def test_a_workbook_with_damaged_bytes_gets_a_sentence_or_is_read(tmp_path, seed):
    write_xlsx(tmp_path / "a.xlsx", PAIRS, "")
    dice, data = random.Random(seed), bytearray((tmp_path / "a.xlsx").read_bytes())
    for _ in range(10):
        data[dice.randrange(len(data))] = dice.randrange(256)
    (tmp_path / "a.xlsx").write_bytes(data)
    with contextlib.suppress(PatinaError):
        assert read(tmp_path / "a.xlsx").rows


def test_all_faults_of_all_files_come_at_once_twenty_of_them_shown(tmp_path):
    (tmp_path / "1.csv").write_text("问题,答案\n" + "甲,\n" * 23, encoding="utf-8")
    (tmp_path / "2.xls").write_bytes(b"")
    with pytest.raises(PatinaError) as caught:
        read(tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("cannot be trained on: 24 faults")
    assert lines[1].startswith("  1.csv:2 column B:")
    assert lines[-1] == "  and 4 more"
    assert len(lines) == 22


def test_what_is_not_there_or_holds_nothing_gets_a_sentence(tmp_path):
    with pytest.raises(PatinaError, match="there is no such file or folder"):
        read(tmp_path / "none.csv")
    with pytest.raises(PatinaError, match=r"there is no file of data in this folder; put \.xlsx"):
        read(tmp_path)


def test_every_suffix_has_a_reader_that_takes_an_empty_file(tmp_path):
    for suffix in READERS:
        (tmp_path / f"a{suffix}").write_bytes(b"")
        with pytest.raises(PatinaError, match=rf"a\{suffix}: "):
            read(tmp_path / f"a{suffix}")
