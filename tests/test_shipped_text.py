"""Each shipped config of text mode runs as it is written, on a tiny model of the class that it names."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from test_text_template import LLAMA2, R1, R1_MARKS
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from patina import configfile
from patina.run import run
from tests.tiny_text import PAD, llama, qwen2, tokenizer

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
# peft asks transformers' models for a property that transformers is renaming
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
TALK = [
    {"system": "You sell tea.", "input": "Hello", "output": "Welcome!"},
    {"input": "Green?", "output": "Of course."},
]
DEEPSEEK = R1_MARKS[1:3]


class Case(NamedTuple):
    model: PreTrainedModel
    words: PreTrainedTokenizerFast
    row: dict[str, Any]
    learned: list[str]
    """The answers of a row as they are trained, each with what ends it."""
    targets: set[str]


CASES = {
    "qwen_copywriting": lambda: Case(
        qwen2(max_position_embeddings=512),
        tokenizer(),
        {"instruction": "写一篇防晒霜的文案", "output": "姐妹们☀️ 夏天救星"},
        ["姐妹们☀️ 夏天救星<|im_end|>"],
        {"q_proj", "v_proj"},
    ),
    "deepseek_conversations": lambda: Case(
        qwen2(tie_word_embeddings=False),
        tokenizer(R1_MARKS, R1, *DEEPSEEK),
        {"conversation": TALK},
        [f"Welcome!{DEEPSEEK[1]}", f"Of course.{DEEPSEEK[1]}"],
        {"q_proj", "k_proj", "v_proj", "o_proj"},
    ),
    "llama_factory": lambda: Case(
        qwen2(tie_word_embeddings=False),
        tokenizer(),
        {"instruction": "Translate.", "input": "chat", "output": "cat"},
        ["cat<|im_end|>"],
        {"q_proj", "v_proj"},
    ),
    "faq_json": lambda: Case(
        llama(),
        tokenizer((PAD, "<s>", "</s>"), LLAMA2, "<s>", "</s>"),
        {"question": "Open on Sunday?", "answer": '{"answer": "No."}'},
        [' {"answer": "No."} </s>'],
        {"q_proj", "v_proj"},
    ),
}


def test_every_text_config_is_run_here_or_is_the_demo() -> None:
    texts = {path.stem for path in CONFIGS.glob("*.yaml") if "text-generation" in path.read_text(encoding="utf-8")}
    assert texts == {*CASES, "demo_text"}


@pytest.mark.parametrize("name", CASES)
def test_it_trains_what_it_says(tmp_path, monkeypatch, name) -> None:
    path, case = CONFIGS / f"{name}.yaml", CASES[name]()
    written = configfile.load(path)
    monkeypatch.chdir(tmp_path)
    place = (tmp_path, Path(str(written.base_model)), Path(str(written.train_data)))
    case.model.save_pretrained(place[1])
    case.words.save_pretrained(place[1])
    place[2].parent.mkdir()
    numbered = [key for key in ("instruction", "question") if key in case.row]
    rows = [case.row | {key: f"{case.row[key]}{n}" for key in numbered} for n in range(40)]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    place[2].write_text(f"[{','.join(lines)}]" if place[2].suffix == ".json" else "\n".join(lines), encoding="utf-8")
    # a CPU's own way of computing, and few steps; all else as it is written
    folder = run(configfile.load(path, ["mixed_precision=fp32", "optimizer=adamw", "max_steps=2", "preview.every=0"]))
    facts = json.loads((folder / "adapter_config.json").read_text())
    assert (facts["r"], facts["lora_alpha"]) == (written.lora_rank, written.lora_alpha)
    assert set(facts["target_modules"]) == case.targets
    assert len((written.output_dir / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("name", CASES)
def test_the_rows_that_its_comment_names_are_learned_to_their_end(tmp_path, name) -> None:
    from patina.text.read import read
    from patina.text.template import choose_template

    config, case = configfile.load(CONFIGS / f"{name}.yaml"), CASES[name]()
    file = tmp_path / Path(str(config.train_data)).name
    line = json.dumps(case.row, ensure_ascii=False)
    file.write_text(f"[{line}]" if file.suffix == ".json" else line, encoding="utf-8")
    template = choose_template(case.words, config.text.template)
    (row,) = template.encode(read(file, {}).rows)
    assert template.tokenizer.decode(row.ids[row.trained]) == "".join(case.learned)


def test_the_readme_of_the_configs_names_every_file_and_every_placeholder() -> None:
    text = (CONFIGS / "README.md").read_text(encoding="utf-8")
    for path in CONFIGS.glob("*.yaml"):
        assert f"`{path.name}`" in text
        data = re.findall(r"\./data/(?:my|your)_[\w.]+", path.read_text(encoding="utf-8"))
        assert all(f"`{name}`" in text for name in data)
