"""What a run on texts answers while it trains: the table, the page, and that the training does not notice."""

import json
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from playwright.sync_api import sync_playwright
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_review import CHROMIUM, FLAGS
from test_text_run import base, metrics, place, prepare, small  # noqa: F401 (fixtures)
from transformers import OPTConfig, OPTForCausalLM

from patina.engine.memory import again
from patina.errors import PatinaError
from patina.lora import inject
from patina.lora.off import switched_off
from patina.run import run
from patina.text import questions
from patina.text.checkpointing import checkpoints, recompute_layers
from patina.text.generate import Manner, replies
from patina.text.rows import Row, Turn
from patina.text.template import choose_template
from patina.watch.answers import Answers, Asked
from patina.watch.board import Board
from tests.tiny_text import SHAPE, llama, save, tokenizer

SHORT = 12
"""Tokens of an answer here: the tiny models never end one themselves."""
EVIL = "</td><script>document.title='gone'</script><img src=x onerror=\"document.title='gone'\">\x1b]0;gone\x07\u202e"
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(autouse=True)
def _brief(monkeypatch) -> None:
    monkeypatch.setattr(questions, "MOST", SHORT)


def asking(*overrides: str):
    """With answers as often as they are by default."""
    return small("preview.every=", *overrides)


def lines(folder: str) -> list[dict]:
    return [json.loads(line) for line in (Path(folder) / "samples" / "answers.jsonl").read_text().splitlines()]


def answers(folder: str) -> dict[int, list[str]]:
    return {line["step"]: [one["answer"] for one in line["answers"]] for line in lines(folder)}


def board_texts(folder: str) -> dict[str, list[tuple[int, str]]]:
    events = EventAccumulator(f"{folder}/logs", size_guidance={"tensors": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["tensors"] if tag.startswith("answers/")]
    return {tag: [(e.step, e.tensor_proto.string_val[0].decode()) for e in events.Tensors(tag)] for tag in tags}


# --- A run ------------------------------------------------------------------------------------------------------------


def test_at_every_save_and_the_end_the_held_out_questions_are_answered(place, capsys) -> None:  # noqa: F811
    run(asking())
    assert [line["step"] for line in lines("out/small")] == [0, 2, 4, 6]
    first = lines("out/small")[0]["answers"]
    assert [(one["question"], one["reference"]) for one in first] == [
        (f"other {n}?", "yes " * (n + 1)) for n in range(3)
    ]
    assert answers("out/small")[0] != answers("out/small")[6]
    page = Path("out/small/report.html").read_text()
    for word in ("other 2?", "<th>base</th>", "<th>step 4</th>", "<th>reference</th>", "<polyline", "held out"):
        assert word in page
    written = board_texts("out/small")
    assert len(written) == 3
    assert [step for step, _ in written["answers/1/text_summary"]] == [0, 2, 4, 6]
    assert "other 0?" in written["answers/1/text_summary"][0][1]
    assert "report.html" in capsys.readouterr().out


def test_training_does_not_notice(place) -> None:  # noqa: F811
    words = ["network.dropout=0.2", "network.init=pissa", "gradient_checkpointing=true", "save_steps=0"]
    run(small(*words, "preview.every=1", "output_dir=out/shown"))
    run(small(*words, "preview.every=0", "output_dir=out/hidden"))
    assert list(answers("out/shown")) == list(range(7))
    assert not Path("out/hidden/samples").exists()
    assert not Path("out/hidden/report.html").exists()
    assert [line["loss"] for line in metrics("out/shown")] == [line["loss"] for line in metrics("out/hidden")]


def test_recomputed_layers_and_models_without_a_cache_answer_alike(place) -> None:  # noqa: F811
    save(Path("uncached"), llama(use_cache=False))
    words = ["max_steps=2", "save_steps=0"]
    run(asking(*words, "output_dir=out/plain"))
    run(asking(*words, "output_dir=out/recomputed", "gradient_checkpointing=true"))
    run(asking(*words, "output_dir=out/uncached", "base_model=uncached"))
    assert answers("out/plain") == answers("out/recomputed") == answers("out/uncached")


def test_the_base_answers_with_the_adapter_off(place) -> None:  # noqa: F811
    run(asking("max_steps=2", "save_steps=0", "preview.prompts=[one]"))
    run(asking("max_steps=4", "save_steps=0", "preview.prompts=[one, two]", "resume=auto"))
    found = {one["question"]: one["answer"] for one in lines("out/small")[0]["answers"]}
    asked = [[Turn("user", word)] for word in ("one", "two")]
    said = replies(llama(), choose_template(tokenizer()), asked, Manner(SHORT))
    assert found == {"one": said[0].text, "two": said[1].text}
    assert [line["step"] for line in lines("out/small")] == [0, 2, 4]
    assert "(not asked)" in Path("out/small/report.html").read_text()  # the second at step 2


def test_switched_off_and_on_again_the_same_weights_are_trained() -> None:
    model = llama()
    inject.adapt(model, ["q_proj"], 4, 8, 3)
    for path, adapter in inject.adapters(model).items():
        adapter.B.data.normal_()
        adapter.A.requires_grad_("layers.0" not in path)
    before = {name: weight.requires_grad for name, weight in model.named_parameters()}
    ids = torch.arange(9)[None]
    with torch.no_grad(), switched_off(model):
        assert torch.equal(model(input_ids=ids).logits, llama()(input_ids=ids).logits)
    assert {name: weight.requires_grad for name, weight in model.named_parameters()} == before
    assert not torch.equal(model(input_ids=ids).logits, llama()(input_ids=ids).logits)


def test_a_resumed_table_is_that_of_an_unbroken_run(place) -> None:  # noqa: F811
    run(asking("output_dir=out/parts"))
    whole, table = (Path("out/parts") / name for name in ("report.html", "samples/answers.jsonl"))
    before = [whole.read_text(), table.read_text()]
    for step in (4, 6):
        shutil.rmtree(f"out/parts/checkpoints/step-{step:06}")
    table.write_text(before[1] + '{"step": 6, "answ')
    run(asking("output_dir=out/parts", "resume=auto"))
    assert [whole.read_text(), table.read_text()] == before


def test_prompts_of_the_config_are_asked_and_must_leave_room(place) -> None:  # noqa: F811
    run(asking("max_steps=1", "preview.prompts=[你好吗]"))
    assert lines("out/small")[1]["answers"][0]["question"] == "你好吗"
    assert "<th>reference</th>" not in Path("out/small/report.html").read_text()
    with pytest.raises(PatinaError, match=r"preview\.prompts: 'xxx.* 256 together; write a shorter one"):
        run(asking(f"preview.prompts=[{'x' * 256}]", "output_dir=out/long"))


def test_a_layer_that_is_recomputed_drops_nothing_while_it_answers() -> None:
    torch.manual_seed(0)
    shape = {key: value for key, value in SHAPE.items() if key != "num_key_value_heads"}
    model = OPTForCausalLM(OPTConfig(vocab_size=300, ffn_dim=48, word_embed_proj_dim=32, dropout=0.5, **shape)).eval()
    asked, template = [[Turn("user", "why?")]], choose_template(tokenizer())
    plain = replies(model, template, asked, Manner(SHORT))
    recompute_layers(model, again(False))
    assert replies(model, template, asked, Manner(SHORT)) == plain
    assert all(layer.training and layer.gradient_checkpointing for layer in checkpoints(model))


# --- What is asked ----------------------------------------------------------------------------------------------------


def test_the_first_questions_that_leave_room_each_once() -> None:
    template = choose_template(tokenizer())
    ask = [Turn("system", "be brief"), Turn("user", "a")]
    rows = [
        Row((), "0", "raw text"),
        Row((Turn("user", "x" * 300), Turn("assistant", "long")), "1"),
        Row((*ask, Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d")), "2"),
        Row((*ask, Turn("assistant", "another")), "3"),
        *(Row((Turn("user", f"{n}?"), Turn("assistant", f"{n}!")), str(n)) for n in range(4)),
    ]
    found = questions.choose((), rows, template, 256)
    assert [one.reference for one in found.each] == ["b", "0!", "1!"]
    assert found.each[0].shown == "system: be brief\nuser: a"
    assert found.most == SHORT
    assert not questions.choose((), rows[:2], template, 256).each


# --- The table and the page -------------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path):
    """Answers of one question, from a list that `ask` takes them from; an error among them is raised."""

    def build(*said: str | Exception, question: str = "what?", start: int = 0, every: int = 1) -> Answers:
        waiting = list(said)

        def ask(tuned: bool) -> list[str]:
            answer = waiting.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return [answer]

        answers = Answers([Asked(question, "right")], ask, tmp_path, "my run", every, 10)
        return answers.begin(start, boards.enter_context(Board(tmp_path / "logs", start)))

    with ExitStack() as boards:
        yield build


def test_a_failure_is_told_once_and_the_next_sampling_tries_again(made, tmp_path, capsys) -> None:
    with made(torch.OutOfMemoryError("full"), ValueError("no"), "better") as table:
        table.draw(1)
        table.draw(2)
    assert list(answers(str(tmp_path))) == [2]
    assert capsys.readouterr().out == "step 0: answers not shown (full); training goes on\n"
    with made("base", start=2):
        assert list(answers(str(tmp_path))) == [0, 2]


def test_our_own_mistakes_are_not_hidden(made) -> None:
    with pytest.raises(AssertionError):
        made(AssertionError("ours"))


def test_a_page_that_is_not_the_runs_stays(made, tmp_path, capsys) -> None:
    (tmp_path / "report.html").write_text("<p>mine")
    with made("base", "better") as table:
        table.draw(1)
    assert (tmp_path / "report.html").read_text() == "<p>mine"
    assert capsys.readouterr().out.count("is not this run's and stays as it is") == 1
    assert list(answers(str(tmp_path))) == [0, 1]


def test_lines_that_are_not_ours_are_dropped(made, tmp_path) -> None:
    with made("base"):
        pass
    path = tmp_path / "samples" / "answers.jsonl"
    ours = path.read_text()
    path.write_text(ours + '[]\n{"step": 1}\n{"step": 1, "answers": [3]}\n\n{"step": "x", "answers": []}\nnull\n')
    with made(start=3):
        assert path.read_text() == ours


def test_half_a_letter_is_kept(made, tmp_path) -> None:
    with made("\ud800 yes"):
        pass
    assert answers(str(tmp_path)) == {0: ["\ud800 yes"]}
    with made(start=1):
        assert answers(str(tmp_path)) == {0: ["\ud800 yes"]}


def test_due_at_each_save_and_at_the_end(made) -> None:
    with made("base", every=4) as table:
        assert [step for step in range(1, 11) if table.due(step)] == [4, 8, 10]
    with made("base", every=0) as table:
        assert [step for step in range(1, 11) if table.due(step)] == [10]


def test_a_hostile_question_and_answer_are_text_and_nothing_else(made, tmp_path) -> None:
    with made("base", EVIL, question=EVIL) as table:
        table.draw(1)
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert "<img" not in page
    assert not {"\x1b", "\x07", "\u202e"} & set(page)
    assert "\\x1b]0;gone\\x07\\u202e" in page
    ((_, text),) = board_texts(str(tmp_path))["answers/1/text_summary"][1:]
    assert not {"\x1b", "\x07", "\u202e"} & set(text)
    assert all(line.startswith("    ") for line in text.splitlines())  # a block of code in Markdown


def test_in_a_browser_the_page_shows_the_answers_and_runs_nothing(made, tmp_path) -> None:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {n}, "loss_smoothed": {9 / n}}}\n' for n in (1, 2, 3)))
    with made("I do not know.", "四十二\n\tand more", EVIL, question=EVIL) as table:
        table.draw(1)
        table.draw(2)
    asked: list[str] = []
    with sync_playwright() as player, player.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS)) as browser:
        view = browser.new_page()
        view.on("request", lambda request: asked.append(request.url))
        view.goto((tmp_path / "report.html").as_uri())
        assert view.title() == "my run"
        assert view.locator("script, img").count() == 0
        assert [view.locator("th").nth(n).inner_text() for n in range(5)] == [
            "question",
            "base",
            "step 1",
            "step 2",
            "reference",
        ]
        assert view.locator("td").nth(2).inner_text() == "四十二\n    and more"
        assert view.locator("polyline").count() == 1
        assert view.locator("svg").bounding_box()["height"] > 100
    assert len(asked) == 1
