"""The chat tool: base and tuned from one copy of the weights, with the base exactly what it was."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from patina.errors import PatinaError
from patina.text.chat import load_pair
from patina.text.generate import Manner, replies, stream
from patina.text.rows import Turn
from patina.text.template import choose_template
from tests.toolbox import TOOLS, command, load_tool

LM = Path("data/demo/lm")
QUESTION = "In the picture: two big pink umbrellas in the snow. How many umbrellas are there?"
SHORT = Manner(most=12)
# peft asks transformers' models for a property that transformers is renaming
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module", autouse=True)
def quiet() -> None:
    from patina.watch.console import hush_libraries

    hush_libraries()


def adapter(folder: Path, seed: int) -> Path:
    """A LoRA for the embedded model with values that change what it says, as peft itself saves it."""
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(LM, dtype=torch.float32),
        LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"),
    )
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.2, generator=generator)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loras(tmp_path_factory) -> tuple[Path, Path]:
    home = tmp_path_factory.mktemp("loras")
    return adapter(home / "one", 1), adapter(home / "two", 2)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(40, 60)[None]).logits


def test_the_base_side_is_bit_equal_to_the_untouched_base(loras) -> None:
    pair = load_pair(str(LM), [(loras[0], 1.0)], None, "cpu", SHORT)
    untouched = AutoModelForCausalLM.from_pretrained(LM, dtype=torch.float32).eval()
    pair.ask_tuned(QUESTION, lambda _: None)
    with pair.tuned.disable_adapter():
        assert torch.equal(logits(pair.tuned), logits(untouched))
    assert not torch.equal(logits(pair.tuned), logits(untouched))
    template = choose_template(AutoTokenizer.from_pretrained(LM))
    said = stream(untouched, template, [Turn("user", QUESTION)], SHORT, lambda _: None)
    assert pair.ask_base(QUESTION, lambda _: None) == said
    assert said.text == "There are two umbrellas."


def test_each_side_remembers_its_own_answers_until_it_is_told_to_forget(loras) -> None:
    pair = load_pair(str(LM), [(loras[0], 1.0)], None, "cpu", SHORT)
    base, tuned = pair.ask_base(QUESTION, lambda _: None), pair.ask_tuned(QUESTION, lambda _: None)
    assert [turn.text for turn in pair.said["base"]] == [QUESTION, base.text]
    assert [turn.text for turn in pair.said["tuned"]] == [QUESTION, tuned.text]
    pair.forget()
    assert pair.said == {"base": [], "tuned": []}
    assert pair.ask_base(QUESTION, lambda _: None) == base


def test_several_adapters_are_joined_by_their_weights_exactly(loras) -> None:
    weights = (0.75, -0.5)
    pair = load_pair(str(LM), list(zip(loras, weights, strict=True)), None, "cpu", SHORT)
    by_hand = AutoModelForCausalLM.from_pretrained(LM, dtype=torch.float32).eval()
    for path, weight in zip(loras, weights, strict=True):
        plain = AutoModelForCausalLM.from_pretrained(LM, dtype=torch.float32)
        single = load_pair(str(LM), [(path, 1.0)], None, "cpu", SHORT).tuned.merge_and_unload()
        for name, target in by_hand.named_parameters():
            target.data += weight * (single.get_parameter(name) - plain.get_parameter(name))
    torch.testing.assert_close(logits(pair.tuned), logits(by_hand), rtol=1e-4, atol=1e-4)


def test_what_is_streamed_is_the_answer_and_many_at_a_time_say_the_same() -> None:
    template = choose_template(AutoTokenizer.from_pretrained(LM))
    model = AutoModelForCausalLM.from_pretrained(LM, dtype=torch.float32).eval()
    asked = [[Turn("user", text)] for text in (QUESTION, "In the picture: a red car. What colour is the car?")]
    parts: list[str] = []
    alone = [stream(model, template, turns, SHORT, parts.append) for turns in asked]
    assert "".join(parts) == "".join(reply.text for reply in alone)
    assert len(parts) > 6
    assert replies(model, template, asked, SHORT) == alone
    assert all(reply.stopped for reply in alone)
    assert not replies(model, template, asked, Manner(most=2))[0].stopped


def test_chance_is_a_function_of_the_seed() -> None:
    template = choose_template(AutoTokenizer.from_pretrained(LM))
    model = AutoModelForCausalLM.from_pretrained(LM, dtype=torch.float32).eval()
    hot = [Manner(most=12, temperature=3.0, top_p=1.0, seed=seed) for seed in (1, 1, 2)]
    one, same, other = (replies(model, template, [[Turn("user", QUESTION)]], manner) for manner in hot)
    assert one == same
    assert one != other


def test_the_tool_answers_lines_resets_and_ends(loras, capsys) -> None:
    lines = [QUESTION, "", "/reset", QUESTION, "exit", "never asked"]
    words = ["--base", str(LM), "--lora", f"{loras[0]}:0.5", "--max-new-tokens", "12"]
    assert load_tool("chat").main(words, lines) == 0
    said = capsys.readouterr().out
    assert said.count("base:  There are two umbrellas.") == 2
    assert said.count("tuned: ") == 2
    assert said.count("(forgotten)") == 1
    assert "never asked" not in said


def test_questions_may_come_from_a_pipe(loras) -> None:
    words = ["--base", str(LM), "--lora", str(loras[0]), "--max-new-tokens", "12"]
    ended = command(TOOLS / "chat.py", *words, typed=f"{QUESTION}\n")
    assert ended.returncode == 0, ended.stderr
    assert "base:  There are two umbrellas." in ended.stdout
    assert "Warning" not in ended.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing to talk to"),
        (["--base", str(LM)], "nothing to talk to"),
        (["--base", str(LM), "--lora", "gone"], "--lora gone: holds no adapter_config.json"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_loaded(words, said) -> None:
    with pytest.raises(PatinaError, match=said):
        load_tool("chat").main(words, [])
