"""Rows in every shape that trainers and people use become the same conversations, or name what is wrong in them."""

import json
from pathlib import Path

import pytest

from patina.errors import PatinaError
from patina.text.read import read, read_rows

QA = [("user", "q"), ("assistant", "a")]
TWO = [("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")]


def save(folder: Path, *rows: object) -> Path:
    path = folder / "a.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


def table(folder: Path, text: str) -> Path:
    (folder / "a.csv").write_text(text, encoding="utf-8")
    return folder / "a.csv"


def turns(path: Path) -> list[tuple[str, str]]:
    (row,) = read_rows(path)
    return [(turn.role, turn.text) for turn in row.turns]


SHAPES = [
    ({"instruction": "q", "output": "a"}, QA),
    ({"instruction": "q", "input": "", "output": "a"}, QA),
    ({"instruction": "q", "input": None, "output": "a", "id": 7}, QA),
    ({"instruction": "q", "input": "i", "output": "a"}, [("user", "q\ni"), ("assistant", "a")]),
    ({"instruction": "", "input": "q", "output": "a"}, QA),
    ({"instruction": "q2", "input": "", "output": "a2", "history": [["q1", "a1"]]}, TWO),
    ({"instruction": "q", "output": "a", "system": "s", "history": []}, [("system", "s"), *QA]),
    ({"instruction": "q", "response": "a"}, QA),
    ({"question": "q", "answer": "a"}, QA),
    ({"Prompt": "q", "COMPLETION": "a"}, QA),
    ({"prompt": "q", "response": "a", "system_prompt": "s"}, [("system", "s"), *QA]),
    ({"input": "q", "output": "a"}, QA),
    ({"问题": "q", "答案": "a"}, QA),
    ({"指令": "q", "输入": "i", "输出": "a"}, [("user", "q\ni"), ("assistant", "a")]),
    ({"输入": "q", "输出": "a"}, QA),
    ({"conversation": [{"input": "q1", "output": "a1"}, {"input": "q2", "output": "a2"}]}, TWO),
    ({"conversation": [{"system": "s", "input": "q", "output": "a"}]}, [("system", "s"), *QA]),
    ({"conversation": [{"human": "q1", "assistant": "a1"}, {"human": "q2", "assistant": "a2"}]}, TWO),
    ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "tools": ""}, QA),
    ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"}, None),
    ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, QA),
    ({"messages": [{"role": "developer", "content": "s"}, *[{"role": r, "content": t} for r, t in QA]]}, None),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "q"}]},
                {"role": "assistant", "content": "a"},
            ]
        },
        QA,
    ),
]


@pytest.mark.parametrize(("fields", "expected"), SHAPES, ids=[",".join(fields) for fields, _ in SHAPES])
def test_each_shape_becomes_the_same_turns(tmp_path, fields, expected):
    assert turns(save(tmp_path, fields)) == (expected or [("system", "s"), *QA])


@pytest.mark.parametrize(
    "headings",
    [
        *(
            "question,answer",
            "Question,ANSWER",
            "问题,答案",
            "问,答",
            "提问,回答",
            "用户,助手",
            "输入,输出",
            "\uff31, Answer:",
        ),
        *("prompt,completion", "prompt,response", "instruction,output", "客户问题,客服回复", "客户,客服", "問題,答案"),
    ],
)
def test_headings_are_known_in_any_case_and_width_and_order(tmp_path, headings):
    assert turns(table(tmp_path, f"{headings}\nq,a\n")) == QA
    first, second = headings.split(",")
    assert turns(table(tmp_path, f"{second},编号,{first}\na,1,q\n")) == QA


def test_a_column_of_speakers_is_not_the_question_where_there_is_one(tmp_path):
    assert turns(table(tmp_path, "客户,问题,客服,答案\n张三,q,李四,a\n")) == QA


def test_an_exchange_that_repeats_its_system_text_keeps_one(tmp_path):
    items = [{"system": "s", "input": "q1", "output": "a1"}, {"system": "s", "input": "q2", "output": "a2"}]
    assert turns(save(tmp_path, {"conversation": items})) == [("system", "s"), *TWO]
    items[1]["system"] = "t"
    assert turns(save(tmp_path, {"conversation": items}))[3] == ("user", "t\nq2")


def test_a_list_in_a_cell_is_read_as_json(tmp_path):
    text = 'instruction,output,history\nq2,a2,"[[""q1"", ""a1""]]"\n'
    assert turns(table(tmp_path, text)) == TWO


def test_raw_text_is_kept_as_it_is(tmp_path):
    (row,) = read_rows(save(tmp_path, {"text": " 从前\n", "meta": {"id": 1}}))
    assert (row.turns, row.text) == ((), " 从前\n")


def test_rows_of_several_shapes_in_one_file(tmp_path):
    rows = read_rows(save(tmp_path, {"question": "q", "answer": "a"}, {"text": "t"}, {"input": "q", "output": "a"}))
    assert [len(row.turns) for row in rows] == [2, 0, 2]


# Headings that are not known


def test_two_columns_of_text_are_guessed_and_it_is_said(tmp_path):
    path = table(tmp_path, "编号,标题,正文,日期\n1,甲,乙,2024年3月5日\n2,丙,丁,2024年3月6日\n")
    reading = read(path)
    assert [turn.text for turn in reading.rows[0].turns] == ["甲", "乙"]
    (guess,) = [note for note in reading.notes if "guessed" in note]
    assert guess == (
        "a.csv: guessed that '标题' is the question and '正文' the answer; if not, "
        "write text.columns: [question=正文, answer=标题]"
    )
    assert [turn.text for turn in read(path, {"question": "正文", "answer": "标题"}).rows[0].turns] == ["乙", "甲"]
    assert not [note for note in read(path, {"question": "正文", "answer": "标题"}).notes if "guessed" in note]


def test_a_guess_leaves_a_known_heading_its_meaning(tmp_path):
    for text in ("答案,说法\n乙,甲\n", "说法,问题\n乙,甲\n"):
        assert turns(table(tmp_path, text)) == [("user", "甲"), ("assistant", "乙")]


def test_a_table_without_headings_loses_no_row(tmp_path):
    reading = read(table(tmp_path, "怎么退货？,七天内。\n多少钱？,十元。\n"))
    assert [row.turns[0].text for row in reading.rows] == ["怎么退货？", "多少钱？"]
    assert any("the columns are taken to have no headings" in note for note in reading.notes)


def test_columns_by_name_reach_every_kind_of_field(tmp_path):
    path = table(tmp_path, "a,b,c,d\nq,i,a,s\n")
    columns = {"question": "A", "input": "b", "answer": "c", "system": "d"}
    assert [(t.role, t.text) for t in read_rows(path, columns)[0].turns] == [
        ("system", "s"),
        ("user", "q\ni"),
        ("assistant", "a"),
    ]
    assert read_rows(path, {"text": "d"})[0].text == "s"


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"query": "a"}, r"text\.columns: 'query' is no kind of field; write one of question, answer, input"),
        ({"question": "a"}, r"text\.columns: {'question': 'a'} is not enough; write text\.columns: \[question"),
        ({"question": "a", "answer": "z"}, r"a\.csv: there is no column z, only a, b, c, d; correct text\.columns"),
    ],
)
def test_columns_that_do_not_fit_get_a_sentence(tmp_path, columns, words):
    with pytest.raises(PatinaError, match=words):
        read_rows(table(tmp_path, "a,b,c,d\nq,i,a,s\n"), columns)


# Faults in conversations


def said(*pairs: tuple[str, object]) -> dict[str, object]:
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


FAULTS = [
    (said(("user", "q")), r"a\.jsonl:1: the last question has no answer"),
    (said(("assistant", "a"), ("user", "q")), r"turn 1 is the assistant's where the user's is due; system \(once"),
    (said(("system", "s"), ("user", "q"), ("user", "q")), r"turn 3 is the user's where the assistant's is due"),
    (said(*QA, ("system", "s"), *QA), r"turn 3 is the system's where the user's is due"),
    (said(("tool", "x"), *QA), r"key messages\[0\]: the role 'tool' is not known; write system, user or assistant"),
    (said(("user", "q"), ("assistant", " ")), r"key messages\[1\]: the assistant's text is empty"),
    (said(("user", 5), ("assistant", "a")), r"key messages\[0\]: the user's text is a number, not a text"),
    (said(("user", [{"type": "image_url"}]), ("assistant", "a")), r"messages\[0\]: holds a part that is not text"),
    ({"messages": []}, r"there are no rows in it"),
    ({"messages": "hello"}, r"key messages: is a text, not a list of turns; write \[{\"role\": \"user\""),
    ({"messages": ["hello"]}, r"key messages\[0\]: is not an object; write {\"role\""),
    ({"messages": [{"role": "user"}]}, r"messages\[0\]: says nothing; write what the user says as content"),
    ({"messages": [{"x": "q", "y": "a"}]}, r"messages\[0\]: has the keys x, y; write {\"role\""),
    ({"conversation": [{"input": "q", "output": ""}]}, r"key conversation\[0\]: the answer is empty"),
    ({"instruction": "q", "output": "a", "history": [["x"]]}, r"key history: entry 0 is not a pair; write \[question"),
    ({"instruction": "q", "output": "a", "history": "x"}, r"key history: is a text, not a list"),
    ({"instruction": "", "input": "", "output": "a"}, r"key instruction: the question is empty"),
    ({"prompt": "p", "chosen": "c", "rejected": "r"}, r"which column is the question and which the answer"),
]


@pytest.mark.parametrize(("fields", "words"), FAULTS, ids=[str(at) for at in range(len(FAULTS))])
def test_what_is_wrong_in_a_conversation_is_named(tmp_path, fields, words):
    with pytest.raises(PatinaError, match=words):
        read_rows(save(tmp_path, fields))


def test_the_demos_rows_are_read():
    folder = Path(__file__).parents[1] / "data" / "demo" / "text_train"
    rows = read_rows(folder / "train.jsonl")
    assert len(rows) == 1200
    assert all(json.loads(row.turns[1].text)["answer"] for row in rows)
