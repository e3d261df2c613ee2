"""Rows held out of the training data: whole questions, the same at every start, and measured."""

import random

import pytest

from patina.errors import PatinaError
from patina.run import run
from patina.text.rows import Row, Turn
from patina.text.split import asked, split
from tests.test_text_run import metrics, prepare, small
from tests.tiny_text import save

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def row(question: str, answer: str = "yes") -> Row:
    return Row((Turn("system", "Be brief."), Turn("user", question), Turn("assistant", answer)), "here")


ROWS = [row(f"question {n % 40}?", f"answer {n}") for n in range(80)]


def test_a_share_is_held_out_and_each_row_is_in_one_part() -> None:
    kept, held = split(ROWS, 0.1, 3)
    assert len(held) == 8
    assert kept == [row for row in ROWS if row not in held]
    assert held == [row for row in ROWS if row in held]


def test_the_same_question_is_in_one_part_alone_however_it_is_spaced() -> None:
    kept, held = split([*ROWS, *(row(f" question  {n}?\n", "other") for n in range(40))], 0.3, 3)
    assert not {asked(row) for row in kept} & {asked(row) for row in held}
    assert len(held) == 36


def test_the_seed_and_the_content_decide_and_not_the_order() -> None:
    shuffled = random.Random(0).sample(ROWS, len(ROWS))
    held = {row.turns for row in split(ROWS, 0.1, 3)[1]}
    assert {row.turns for row in split(shuffled, 0.1, 3)[1]} == held
    assert {row.turns for row in split(ROWS, 0.1, 4)[1]} != held


def test_at_least_one_question_is_held_out_and_one_is_left() -> None:
    many = [*(row("often?", str(n)) for n in range(9)), row("once?")]
    assert split(many, 0.01, 3)[1] == [row("once?")]
    assert all(split(many, 0.99, seed)[0] for seed in range(9))
    raw = [Row((), "here", text) for text in ("one", "two")]
    assert [len(part) for part in split(raw, 0.5, 3)] == [1, 1]


def test_one_question_alone_cannot_be_split() -> None:
    with pytest.raises(PatinaError, match=r"validation\.split: train_data asks 1 different question"):
        split([row("often?"), row("often?")], 0.5, 3)


def test_a_run_measures_on_the_held_out_rows_says_so_and_goes_on_with_the_same(tmp_path, monkeypatch, capsys) -> None:
    prepare(tmp_path, save(tmp_path / "llama"))
    monkeypatch.chdir(tmp_path)
    words = ["validation_data=", "validation.split=0.3", "save_steps=2", "scheduler=constant"]
    run(small("max_steps=4", *words, "output_dir=out/whole"))
    said = capsys.readouterr().out
    assert "7 rows" in said
    assert "2 other rows to measure on" in said
    found = metrics("out/whole")
    assert [line["step"] for line in found if "validation_loss" in line] == [2, 4]
    assert f"step 4: validation loss {found[-1]['validation_loss']:.4f}, perplexity " in said
    run(small("max_steps=6", *words, "output_dir=out/whole", "resume=auto"))
    run(small("max_steps=6", *words, "output_dir=out/once"))
    again, once = (metrics(f"out/{name}") for name in ("whole", "once"))
    curves = [[line.get("validation_loss") for line in found] for found in (again, once)]
    assert curves[0] == curves[1]
    assert [step for step, loss in enumerate(curves[0], 1) if loss is not None] == [2, 4, 6]
