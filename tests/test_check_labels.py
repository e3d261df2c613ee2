"""tools/check_data.py on labelled texts: what it counts and what it doubts."""

import json

import pytest

from patina.errors import PatinaError
from patina.text.checklabels import check_labels, counts
from patina.text.rows import Row
from tests.test_labelled import put
from tests.toolbox import load_tool

CLEAN = [Row((), f"a:{at}", f"text {at}", "good" if at % 2 else "bad") for at in range(40)]


def test_sound_rows_raise_no_doubt() -> None:
    assert check_labels(CLEAN, [Row((), "b:1", "another", "good")]) == []
    assert counts([*CLEAN, CLEAN[1]]) == {"good": 21, "bad": 20}


@pytest.mark.parametrize(
    ("more", "what", "where"),
    [
        ([Row((), "x", "TEXT  0", "good")], "texts with different labels", 'a:0, x: "text 0" is bad and good'),
        ([Row((), "x", "new", "Good")] * 3, "labels that differ in case, spaces or width alone", "good and Good"),
        ([Row((), "x", "new", "odd")], "labels that are rare", "odd: 1 of 41 rows, where the commonest label has 20"),
        ([Row((), "x", "text 0", "bad")], "rows that repeat an earlier one exactly", "x repeats a:0"),
        ([Row((), "x", "<br>fine", "bad")], "texts with HTML in them", 'x: "<br>fine"'),
    ],
)
def test_doubts_about_labelled_rows(more, what, where) -> None:
    found = {doubt.what: doubt.where for doubt in check_labels([*CLEAN, *more])}
    assert where in found[what]


def test_leaks_of_labelled_texts() -> None:
    (doubt,) = check_labels(CLEAN, [Row((), "b:1", "Text 3", "bad")])
    assert doubt.where == ("b:1 is the text of a:3",)


def test_the_tool_counts_labels(tmp_path, capsys) -> None:
    check_data = load_tool("check_data").main
    path = put(
        tmp_path / "a.csv", "text,label\n" + "".join(f"text {n},{'good' if n % 4 else 'bad'}\n" for n in range(8))
    )
    assert check_data([str(path), "--labels"]) == 0
    assert f"{path}: 8 rows (good: 6, bad: 2)" in capsys.readouterr().out
    lines = ["task_type: seq_cls", f"train_data: {path}", f"validation_data: {path}", "base_model: m", "output_dir: o"]
    config = put(tmp_path / "run.yaml", "\n".join(lines))
    assert check_data([str(config), "--strict"]) == 1
    assert "a.csv:2 column A is the text of a.csv:2 column A" in capsys.readouterr().out
    assert check_data([str(put(tmp_path / "b.csv", "text,label\nfine,\n")), "--labels"]) == 2
    with pytest.raises(PatinaError, match="--repair: is for conversations; leave it out"):
        check_data([str(path), "--labels", "--repair", str(tmp_path / "c.jsonl")])


def test_a_classifier_does_not_talk(tmp_path) -> None:
    put(tmp_path / "adapter_config.json", json.dumps({"task_type": "SEQ_CLS"}))
    put(tmp_path / "adapter_model.safetensors", "")
    with pytest.raises(PatinaError, match="tells labels and does not talk; load it with peft"):
        load_tool("chat").main(["--base", "m", "--lora", str(tmp_path)], [])
