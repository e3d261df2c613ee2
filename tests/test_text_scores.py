"""What answers are worth, and that a run which is asked for some trains as one that is not."""

import json
import random
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from patina.engine.memory import again
from patina.errors import PatinaError
from patina.run import run
from patina.text.checkpointing import recompute_layers
from patina.text.generate import Manner, replies
from patina.text.measure import MOST, SPARE, examine
from patina.text.rows import Row, Turn
from patina.text.scores import bleu, common, rouge_l, scores
from patina.text.template import choose_template
from tests.test_text_run import base, metrics, place, small  # noqa: F401
from tests.tiny_text import llama, tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
CHINESE = ("今天天气很好，我们去公园吧。", "今天天气很好，我们去学校吧。")


def test_bleu_is_sacrebleus_of_words_and_of_chinese_characters() -> None:
    # four of five words, three of four pairs, two of three triples, one of two fours
    assert bleu(["a b c d e"], ["a b c d f"]) == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert bleu(["a b c d e", "none"], ["a b c d f", "zero"]) < bleu(["a b c d e"], ["a b c d f"])
    assert bleu(["one two three four"], ["one two three four"]) == pytest.approx(100)
    assert bleu(["one two"], ["one two"]) == pytest.approx(100)
    assert bleu(["nothing of it"], ["one two three"]) == pytest.approx(0, abs=1)
    one, other = CHINESE
    assert bleu([one], [other]) > 50
    assert bleu([one], ["We go to the park today, and the weather is good."]) == pytest.approx(0, abs=1)


def test_rouge_counts_words_in_their_order_whatever_stands_between() -> None:
    assert rouge_l("The cat sat.", "the dog sat") == pytest.approx(2 / 3)
    assert rouge_l("a b c d", "d a c") == pytest.approx(2 * 2 / 7)
    one, other = CHINESE
    assert rouge_l(one, other) == pytest.approx(10 / 12)
    assert (rouge_l("", ""), rouge_l("a", ""), rouge_l("", "a")) == (1, 0, 0)


def test_the_common_part_is_as_long_as_the_plain_table_says() -> None:
    dice = random.Random(3)
    for _ in range(50):
        one, other = ("".join(dice.choices("abc", k=dice.randrange(1, 90))) for _ in range(2))
        table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
        for x, mine in enumerate(one):
            for y, its in enumerate(other):
                longer = max(table[x][y + 1], table[x + 1][y])
                table[x + 1][y + 1] = table[x][y] + 1 if mine == its else longer
        assert common(one, other) == table[-1][-1]


def test_json_is_counted_where_it_was_wanted_and_nowhere_else() -> None:
    wanted = ['{"a": 1, "b": 2}', '{"a": 1}', '{"a": 1, "b": {}}', "just words"]
    said = ['{"b": 2}', "no JSON", '{"b": 0, "a": 0, "c": 0}', "{}"]
    found = scores(said, wanted)
    assert found["json_valid"] == pytest.approx(2 / 3)
    assert found["json_keys"] == pytest.approx((0.5 + 0 + 1) / 3)
    assert found["exact"] == 0
    assert scores([" [1] "], ["[1]"]).keys() == {"exact", "bleu", "rouge_l"}
    assert scores([" [1] ", "2"], ["[1]", "3"])["exact"] == 0.5
    assert scores(["{}"], ["{}"])["json_keys"] == 1


def talk(question: str, answer: str) -> Row:
    return Row((Turn("user", question), Turn("assistant", answer)), "here")


def test_questions_come_from_all_over_the_set_and_leave_room_for_an_answer() -> None:
    template = choose_template(tokenizer())
    rows = [talk(f"{number}?", "x" * 20) for number in range(10)]
    found = examine(rows, template, 5, 256)
    assert [turns[0].text for turns in found.asked] == ["0?", "2?", "4?", "6?", "8?"]
    assert (found.most, set(found.wanted)) == (20 + SPARE, {"x" * 20})
    assert len(examine(rows, template, 50, 256).asked) == 10
    assert examine([talk("a?", "x" * 999)], template, 1, 4096).most == MOST
    assert len(examine([*rows, talk("long " * 60, "x")], template, 50, 256).asked) == 10
    assert examine([talk("a?", "<think>so</think>\n\nyes")], template, 1, 256).wanted == ["yes"]
    more = (*rows[0].turns, *rows[1].turns)
    assert examine([Row(more, "here")], template, 1, 256).asked == [more[:-1]]


@pytest.mark.parametrize("rows", [[Row((), "here", "a text")], [talk("long " * 60, "x")]], ids=["raw", "long"])
def test_nothing_to_ask_is_a_sentence(rows) -> None:
    with pytest.raises(PatinaError, match=r"validation\.generate: none of the rows"):
        examine(rows, choose_template(tokenizer()), 5, 256)


def test_layers_that_are_computed_twice_answer_as_the_others_do() -> None:
    plain, twice = llama(), llama()
    recompute_layers(twice, again(False))
    template, asked = choose_template(tokenizer()), [[Turn("user", "what is it?")], [Turn("user", "why?")]]
    assert replies(twice, template, asked, Manner(most=20)) == replies(plain, template, asked, Manner(most=20))
    assert all(layer.gradient_checkpointing for layer in twice.model.layers)


@pytest.mark.parametrize(
    "words", [["network.dropout=0.3"], ["gradient_checkpointing=true"]], ids=lambda words: words[0]
)
def test_a_run_that_answers_trains_as_one_that_does_not(place, words, capsys) -> None:  # noqa: F811
    words = [*words, "output_name=lora", "save_steps=0", "validation.every=2"]
    plain = run(small(*words, "output_dir=out/plain"))
    torch.manual_seed(8)
    before = torch.get_rng_state()
    beside = run(small(*words, "output_dir=out/beside", "validation.generate=2"))
    assert "2 of these answered, in 24 tokens at most" in capsys.readouterr().out
    if "network.dropout=0.3" not in words:  # which places the generator itself
        assert torch.equal(before, torch.get_rng_state())
    name = "adapter_model.safetensors"
    assert (plain / name).read_bytes() == (beside / name).read_bytes()
    without, found = metrics("out/plain"), metrics("out/beside")
    assert [line["loss"] for line in without] == [line["loss"] for line in found]
    names = {f"validation_{name}" for name in ("bleu", "rouge_l", "exact")}
    assert [line["step"] for line in found if names <= line.keys()] == [2, 4, 6]
    assert not any(names & line.keys() for line in without)
    assert not any("validation_json_valid" in line for line in found)


def test_a_model_that_has_learned_the_answers_gets_full_marks(place, capsys) -> None:  # noqa: F811
    rows = [{"instruction": f"{word}?", "output": json.dumps({word: 1})} for word in ("aaa", "zzz")]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["validation_data=train.jsonl", "max_steps=60", "save_steps=0", "validation.generate=9"]
    run(small(*words, "validation.every=30", "lora_rank=16", "learning_rate=2e-2"))
    last = metrics("out/small")[-1]
    names = ("exact", "bleu", "rouge_l", "json_valid", "json_keys")
    assert [last[f"validation_{name}"] for name in names] == pytest.approx([1, 100, 1, 1, 1])
    assert "exact 1.0000, bleu 100.0000, rouge l 1.0000, json valid 1.0000, json keys 1.0000" in capsys.readouterr().out
    curves = EventAccumulator("out/small/logs").Reload()
    assert [event.step for event in curves.Scalars("validation/bleu")] == [30, 60]
