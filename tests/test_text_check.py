"""tools/check_data.py says what is in text data and what is wrong with it, and writes a copy without that."""

import json
import subprocess
import sys
from pathlib import Path

import openpyxl
import pytest
from toolbox import TOOLS, load_tool

from patina.errors import PatinaError
from patina.text.check import check, folded, kinds, quoted
from patina.text.read import read_rows
from patina.text.rows import Row, Turn
from patina.text.tokens import lengths

DEMO = Path(__file__).parents[1] / "data" / "demo"
check_data = load_tool("check_data").main


def row(question: str, answer: str, place: str = "here") -> Row:
    return Row((Turn("user", question), Turn("assistant", answer)), place)


def save(path: Path, *pairs: tuple[str, str]) -> Path:
    lines = [json.dumps({"question": q, "answer": a}, ensure_ascii=False) for q, a in pairs]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


GOOD = [row(f"问题{number}？", f"这是第{number}个回答。", f"set:{number}") for number in range(20)]


def test_sound_rows_raise_no_doubt():
    assert check(GOOD, [row("别的？", "是的。")]) == []
    french = row("Où ?", "« Ça va, né à l'été… » — l'élève, 10 € ; a < b && c > d", "fr")
    assert check([*GOOD, french]) == []


@pytest.mark.parametrize(
    ("rows", "what", "where"),
    [
        ([GOOD[0], row("问题0？", "这是第0个回答。", "x")], "repeat an earlier one exactly", "x repeats set:0"),
        (
            [row("How ARE you", "Fine", "a"), row("how  are \uff59ou", "fine", "b")],
            "case, spaces or width",
            "b repeats a",
        ),
        ([row("q", "yes", "a"), row(" Q", "no", "b")], "different answers", 'a, b: "q" has 2 answers'),
        ([*GOOD, row("q", "x", "a")], "answers of less than 2 characters", 'a: "x"'),
        ([*GOOD, row("q", "长" * 1000, "a")], "far longer", "a: 1,000 characters, where 9 are usual"),
        ([row("q", "a\x1b[31mred", "a")], "control characters", 'a: "a\x1b[31mred"'),
        ([row("q", "锟斤拷锟斤拷", "a")], "wrong encoding", 'a: "锟斤拷锟斤拷"'),
        ([row("q", "caf\u00c3\u00a9", "a")], "wrong encoding", 'a: "caf\u00c3\u00a9"'),
        ([row("q", "问题在哪里".encode().decode("cp1252", "ignore"), "a")], "wrong encoding", "a: "),
        ([row("q", "问题，对吧。".encode().decode("gb18030", "ignore"), "a")], "wrong encoding", "a: "),
        ([row("q", "see<br/>here&nbsp;", "a")], "HTML", 'a: "see<br/>here&nbsp;"'),
        ([row("q", "<a href='x'>link</a>", "a")], "HTML", "a: "),
        ([row("q", "As an AI language model, I", "a")], "being an AI", "a: "),
        ([Row((), "a", "<p>raw</p>")], "HTML", 'a: "<p>raw</p>"'),
    ],
)
def test_each_doubt_is_found_with_its_place(rows, what, where):
    (doubt,) = check(rows)
    assert what in doubt.what
    assert doubt.where[0].startswith(where)


def test_short_answers_are_no_doubt_where_most_are_labels():
    assert check([row(f"q{n}", "01"[n % 2]) for n in range(10)]) == []


def test_a_validation_row_that_was_trained_on_is_a_leak():
    (doubt,) = check(GOOD, [row("新的？", "好。", "v:1"), row("问题3 ？", "另一个回答。", "v:2")])
    assert "measure memory" in doubt.what
    assert doubt.where == ("v:2 asks what set:3 asks",)


def test_texts_are_folded_and_quoted_on_one_line():
    assert folded(" \uff21\uff22 c\n") == folded("abC") == "abc"
    assert quoted("a\n b" + "x" * 60) == f'"a b{"x" * 37}..."'


def test_kinds_of_rows_are_counted():
    several = Row((*GOOD[0].turns, *GOOD[1].turns), "b")
    with_system = Row((Turn("system", "s"), *GOOD[0].turns), "c")
    assert kinds([*GOOD, several, with_system, Row((), "d", "raw")]) == {
        "one question and answer": 20,
        "conversations of several turns": 1,
        "one question and answer, with system text": 1,
        "raw text": 1,
    }


# The tool


def test_it_says_what_is_there_and_ends_with_0_or_strictly_1(tmp_path, capsys):
    path = save(tmp_path / "a.jsonl", ("q", "one"), ("q", "one"), ("q2", "two"))
    assert check_data([str(path)]) == 0
    told = capsys.readouterr().out
    assert "3 rows (one question and answer: 3)" in told
    assert "a.jsonl: UTF-8" in told
    assert "question and answer (question: question, answer: answer)" in told
    assert "rows that repeat an earlier one exactly: 1; --repair leaves them out\n  a.jsonl:2 repeats a.jsonl:1" in told
    assert told.endswith("can be trained on, with doubts\n")
    assert check_data([str(path), "--strict"]) == 1
    assert check_data([str(save(path, ("q", "one"), ("q2", "two"))), "--strict"]) == 0


def test_it_ends_with_2_where_rows_cannot_be_trained_on(tmp_path, capsys):
    assert check_data([str(save(tmp_path / "a.jsonl", ("q", "one"), ("q", "")))]) == 2
    told = capsys.readouterr().out
    assert "faults: 1;" in told
    assert "a.jsonl:2, key answer: the answer is empty" in told
    assert told.endswith("\ncannot be trained on\n")
    assert check_data([str(save(tmp_path / "b.jsonl", ("q", "one"))), "--validation", str(tmp_path / "a.jsonl")]) == 2


def test_a_config_names_its_data(tmp_path, capsys):
    train, other = (save(tmp_path / name, ("q", "one")) for name in ("a.jsonl", "b.jsonl"))
    config = tmp_path / "run.yaml"
    lines = ["task_type: text-generation", f"train_data: {train}", f"validation_data: [{other}]", "base_model: m"]
    config.write_text("\n".join([*lines, "output_dir: out"]), encoding="utf-8")
    assert check_data([str(config), "--strict"]) == 1
    assert "b.jsonl:1 asks what a.jsonl:1 asks" in capsys.readouterr().out


def test_leaks_into_a_validation_file_are_named(tmp_path, capsys):
    train, other = (save(tmp_path / name, ("q", "one")) for name in ("a.jsonl", "b.jsonl"))
    assert check_data([str(train), "--validation", str(other), "--strict"]) == 1
    assert "b.jsonl:1 asks what a.jsonl:1 asks" in capsys.readouterr().out


def test_columns_are_told_on_the_command_line(tmp_path, capsys):
    path = tmp_path / "a.csv"
    path.write_text("甲,乙,丙\nx,y,z\n", encoding="utf-8")
    assert check_data([str(path)]) == 2
    assert check_data([str(path), "--columns", "question=丙", "answer=甲"]) == 0
    assert "(question: 丙, answer: 甲)" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        check_data([str(path), "--columns", "question"])
    assert "'question' is not KEY=HEADING" in capsys.readouterr().err


def test_what_files_hold_cannot_steer_the_terminal_or_its_lines(tmp_path, capsys):
    save(tmp_path / "a.jsonl", ("%s {0} q", "a\x1b]0;title\x07\x9b31m\u202e"), ("q", ""))
    (tmp_path / "a.jsonl").rename(tmp_path / "\x1b[31ma.jsonl")
    check_data([str(tmp_path / "\x1b[31ma.jsonl")])
    told = capsys.readouterr().out
    assert "\\x1b]0;title\\x07\\x9b" in told
    assert all(c.isprintable() or c == "\n" for c in told)


def test_a_repaired_copy_holds_each_sound_row_once_and_says_what_became_of_the_others(tmp_path, capsys):
    source, copy = tmp_path / "问答.xlsx", tmp_path / "out" / "fixed.jsonl"
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    for cells in [("问题", "答案"), ("q", "a"), ("q", "a"), ("缺", None), (None, None), ("多\n行", "好"), ("Q", "a")]:
        sheet.append(cells)
    book.save(source)
    before = source.read_bytes()
    assert check_data([str(source), "--repair", str(copy)]) == 0
    told = capsys.readouterr().out
    assert "left out: 问答.xlsx Sheet!B4: the answer is empty" in told
    assert "left out, repeats 问答.xlsx Sheet!A2: 问答.xlsx Sheet!A3" in told
    assert "3 rows written" in told
    assert [[turn.text for turn in row.turns] for row in read_rows(copy)] == [["q", "a"], ["多\n行", "好"], ["Q", "a"]]
    assert source.read_bytes() == before
    assert [path.name for path in copy.parent.iterdir()] == ["fixed.jsonl"]


def test_a_copy_keeps_conversations_and_raw_text(tmp_path):
    rows = [{"messages": [{"role": r, "content": r} for r in ("system", "user", "assistant", "user", "assistant")]}]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, [*rows, {"text": "raw"}])), encoding="utf-8")
    check_data([str(path), "--repair", str(tmp_path / "b.jsonl")])
    first, second = read_rows(path), read_rows(tmp_path / "b.jsonl")
    assert [(row.turns, row.text) for row in first] == [(row.turns, row.text) for row in second]


def test_a_copy_never_lands_on_a_file_unasked(tmp_path):
    path = save(tmp_path / "a.jsonl", ("q", "one"), ("q", "one"))
    with pytest.raises(PatinaError, match=r"a\.jsonl: is there already; name another file, or add --force"):
        check_data([str(path), "--repair", str(path)])
    with pytest.raises(PatinaError, match=r"lies among the data"):
        check_data([str(tmp_path), "--repair", str(tmp_path / "b.jsonl")])
    with pytest.raises(PatinaError, match=r"a repaired copy is a \.jsonl"):
        check_data([str(path), "--repair", str(tmp_path / "b.csv")])
    assert len(read_rows(path)) == 2
    check_data([str(path), "--repair", str(path), "--force"])
    assert len(read_rows(path)) == 1


def test_where_nothing_can_be_kept_no_copy_is_written(tmp_path):
    path = save(tmp_path / "a.jsonl", ("q", ""))
    with pytest.raises(PatinaError, match="no row can be trained on"):
        check_data([str(path), "--repair", str(tmp_path / "b.jsonl")])
    assert not (tmp_path / "b.jsonl").exists()


def test_a_copy_does_not_mend_the_validation_rows(tmp_path):
    train, other = save(tmp_path / "a.jsonl", ("q", "one")), save(tmp_path / "v.jsonl", ("q", ""))
    assert check_data([str(train), "--validation", str(other), "--repair", str(tmp_path / "b.jsonl")]) == 2


def test_tokens_are_counted_by_the_demos_tokenizer(capsys):
    path = str(DEMO / "text_train" / "test.jsonl")
    assert check_data([path, "--tokenizer", str(DEMO / "lm")]) == 0
    told = capsys.readouterr().out
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(DEMO / "lm"))
    counts = sorted(sum(len(tokenizer.encode(turn.text)) for turn in row.turns) for row in read_rows(Path(path)))
    p50, p95, p99 = counts[49], counts[94], counts[98]
    assert f"tokens a row: p50 {p50}, p95 {p95}, p99 {p99}, longest {counts[-1]} (test.jsonl:" in told
    assert f"{sum(counts):,} in all" in told


def test_so_many_percent_of_the_rows_are_not_longer():
    found = lengths([row("a " * number, "a", f"set:{number}") for number in range(1, 11)], DEMO / "lm")
    assert found.percentiles[50] < found.percentiles[95] == found.percentiles[99] == found.longest
    assert found.place == "set:10"


def test_a_folder_without_a_tokenizer_gets_a_sentence(tmp_path):
    path = save(tmp_path / "a.jsonl", ("q", "one"))
    with pytest.raises(PatinaError, match="holds no tokenizer that can be loaded"):
        check_data([str(path), "--tokenizer", str(tmp_path)])
    with pytest.raises(PatinaError, match="is no folder"):
        check_data([str(path), "--tokenizer", str(tmp_path / "none")])


def test_the_command_line_ends_with_a_sentence_and_2(tmp_path):
    command = [sys.executable, str(TOOLS / "check_data.py"), str(tmp_path / "none.csv")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=TOOLS.parent)
    assert done.returncode == 2
    assert done.stderr == f"{tmp_path / 'none.csv'}: there is no such file or folder; give the path of the data\n"


def test_checking_workbooks_does_not_wait_for_torch():
    code = "import sys, patina.text.read, patina.text.check; assert not {'torch', 'openpyxl'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=TOOLS.parent)
