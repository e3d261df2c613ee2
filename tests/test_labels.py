"""Classification from the command to the adapter folder: the same loop, checkpoints and curves as in other modes."""

import json
import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from patina import configfile
from patina.errors import PatinaError
from patina.run import run
from tests.tiny_classifier import BASES, distilbert, rows, save, write
from tests.toolbox import ROOT

SMALL = """\
task_type: text-classification
train_data: train.jsonl
validation_data: other.jsonl
base_model: base
output_dir: out/small
lora_rank: 4
lora_alpha: 8
batch_size: 6
learning_rate: 1e-2
optimizer: adamw
mixed_precision: fp32
save_precision: fp32
max_steps: 6
save_steps: 2
seed: 3
"""
KINDS = pytest.mark.parametrize("kind", BASES)
# peft asks transformers' models for a property that transformers is renaming
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("bases")
    for kind in BASES:
        save(home / kind, kind)
    return home


@pytest.fixture
def place(tmp_path, bases, monkeypatch) -> Path:
    """A folder as a user has it, with every base and labelled texts; the working directory."""
    for kind in BASES:
        (tmp_path / kind).symlink_to(bases / kind)
    (tmp_path / "base").symlink_to(bases / "distilbert")
    write(tmp_path / "train.jsonl", rows(36))
    write(tmp_path / "other.jsonl", rows(9, first=100))
    (tmp_path / "run.yaml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def small(*overrides: str):
    return configfile.load(Path("run.yaml"), overrides)


def metrics(folder: str = "out/small") -> list[dict]:
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def tuned(kind: str, folder: Path):
    """What peft makes of a base and our folder, by the config in it."""
    config = AutoConfig.from_pretrained(folder / "classifier.json")
    base = AutoModelForSequenceClassification.from_pretrained(kind, config=config)
    return PeftModel.from_pretrained(base, str(folder)).eval()


def told(model, folder: Path, texts: list[str]) -> list[str]:
    """The labels of texts, each on its own."""
    words = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        chosen = [model(**words(text, return_tensors="pt")).logits.argmax(-1).item() for text in texts]
    return [model.config.id2label[number] for number in chosen]


@KINDS
def test_it_learns_to_tell_labels_and_peft_loads_what_it_learnt(place, kind) -> None:
    path = run(small(f"base_model={kind}", "max_steps=60", "save_steps=0"))
    last = metrics()[-1]
    assert last["validation_accuracy"] == last["validation_macro_f1"] == 1.0
    assert metrics()[0]["accuracy"] < 0.9
    assert last["accuracy"] == 1.0
    model, others = tuned(kind, path), rows(9, first=100)
    assert told(model, path, [row["text"] for row in others]) == [row["label"] for row in others]
    # the mean loss of rows each on its own is that of the batches with padding
    words = AutoTokenizer.from_pretrained(path)
    with torch.no_grad():
        losses = [
            -model(**words(row["text"], return_tensors="pt")).logits.log_softmax(-1)[
                0, model.config.label2id[row["label"]]
            ]
            for row in others
        ]
    assert last["validation_loss"] == pytest.approx(float(sum(losses)) / len(losses), rel=1e-3, abs=1e-6)


@KINDS
def test_the_folder_holds_the_head_as_peft_itself_writes_it(place, kind) -> None:
    path = run(small(f"base_model={kind}", "max_steps=2", "save_steps=0"))
    ours, facts = load_file(path / "adapter_model.safetensors"), json.loads((path / "adapter_config.json").read_text())
    head = {
        "distilbert": ["classifier", "pre_classifier"],
        "bert": ["bert.pooler.dense", "classifier"],  # the pooler, which the base has not, too
        "qwen2": ["score"],
    }[kind]
    assert (facts["task_type"], sorted(facts["modules_to_save"])) == ("SEQ_CLS", head)
    model = tuned(kind, path)
    model.save_pretrained(place / "theirs")
    theirs = load_file(place / "theirs" / "adapter_model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    for name in head:
        assert any(key.startswith(f"base_model.model.{name}.") for key in ours)
        assert not any(f"{name}." in key and "lora_" in key for key in ours)
    config = json.loads((path / "classifier.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "fine", "2": "good"}
    assert config["pad_token_id"] == AutoTokenizer.from_pretrained(path).pad_token_id


@pytest.mark.parametrize(
    "words", [["base_model=distilbert"], ["base_model=bert", "network.dropout=0.2", "optimizer=adamw8bit"]]
)
def test_going_on_equals_never_having_stopped(place, words) -> None:
    run(small(*words, "output_dir=out/parts", "max_steps=4", "scheduler=constant"))
    run(small(*words, "output_dir=out/whole", "max_steps=8", "save_steps=0", "scheduler=constant"))
    run(small(*words, "output_dir=out/parts", "max_steps=8", "scheduler=constant", "resume=auto"))
    one, two = ((Path("out") / name / name / "adapter_model.safetensors").read_bytes() for name in ("parts", "whole"))
    assert one == two
    assert [line["loss"] for line in metrics("out/parts")] == [line["loss"] for line in metrics("out/whole")]
    with pytest.raises(PatinaError, match=r"text\.labels was \['bad', 'fine', 'good'\] and is"):
        run(small(*words, "output_dir=out/parts", "resume=auto", "max_steps=9", "text.labels=[good, fine, bad]"))


def test_curves_and_a_picture_of_what_is_taken_for_what(place) -> None:
    run(small())
    events = EventAccumulator(str(place / "out/small/logs"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"accuracy", "loss/raw", "learning_rate/model", "speed/rows_per_second"} <= tags
    assert {"validation/loss", "validation/accuracy", "validation/macro_f1"} <= tags
    assert [event.step for event in events.Scalars("validation/macro_f1")] == [2, 4, 6]
    assert [event.step for event in events.Images("validation/confusion")] == [2, 4, 6]


def test_the_run_says_what_it_trains(place, capsys) -> None:
    run(small("max_steps=1"))
    said = capsys.readouterr().out
    assert "a LoRA and a head for base (DistilBertForSequenceClassification)" in said
    assert "3 labels: bad 12, fine 12, good 12" in said
    assert "pre_classifier, classifier begins anew and is trained whole" in said
    assert "9 other rows to measure on" in said
    assert "validation loss" in said
    assert "macro f1" in said


def test_a_head_that_comes_with_the_base_is_where_it_begins(place, capsys) -> None:
    first = run(small("max_steps=30", "save_steps=0"))
    tuned("distilbert", first).merge_and_unload().save_pretrained("known")
    AutoTokenizer.from_pretrained(first).save_pretrained("known")
    run(small("base_model=known", "output_dir=out/more", "max_steps=1"))
    assert "classifier comes with the base" in capsys.readouterr().out
    assert metrics("out/more")[0]["loss"] < metrics()[0]["loss"] / 4
    write(Path("two.jsonl"), [row for row in rows(36) if row["label"] != "fine"])  # two outputs, not three
    run(small("base_model=known", "output_dir=out/two", "max_steps=1", "train_data=two.jsonl", "validation_data="))
    assert "pre_classifier, classifier begins anew" in capsys.readouterr().out


def test_a_head_is_the_seeds(place) -> None:
    losses = []
    for seed in (3, 3, 4):
        torch.rand(1)  # whatever the random state is
        run(small("max_steps=1", f"seed={seed}", f"output_dir=out/{len(losses)}", "batch_size=36"))
        losses.append(metrics(f"out/{len(losses)}")[0]["loss"])
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(
    "words",
    [
        ["base_model=distilbert", "lora_target=[q_lin]", "gradient_checkpointing=true"],
        ["base_model=qwen2", "lora_target=attn", "gradient_checkpointing=true"],
        ["base_model=bert", "lora_target=[dense]"],
        ["base_model=distilbert", "network.lr_pattern=[classifier=1e-1]", "network.loraplus_ratio=4"],
        ["base_model=wide", "quantize=4bit"],
        ["base_model=distilbert", "quantize=fp8"],
    ],
    ids=" ".join,
)
def test_every_way_of_training_learns_and_comes_back(place, words) -> None:
    if "base_model=wide" in words:  # bitsandbytes rounds in blocks of 64
        save(Path("wide"), "distilbert", distilbert(dim=64, hidden_dim=128))
    path = run(small(*words, "max_steps=40", "save_steps=0"))
    assert metrics()[-1]["loss"] < 0.5 * metrics()[0]["loss"]
    right = told(tuned(words[0].partition("=")[2], path), path, [row["text"] for row in rows(9, first=100)])
    share = sum(one == row["label"] for one, row in zip(right, rows(9, first=100), strict=True)) / 9
    assert share == pytest.approx(metrics()[-1]["validation_accuracy"], abs=0.12 if "quantize" in words[1] else 1e-6)


def test_labels_may_be_numbers_and_in_an_order_of_ones_own(place, capsys) -> None:
    numbers = {"bad": "10", "fine": "9", "good": "-1"}
    write(Path("train.jsonl"), [{**row, "label": numbers[row["label"]]} for row in rows(36)])
    run(small("validation_data=", "validation.split=0.25", "max_steps=1"))
    assert re.search(r"3 labels: -1 \d+, 9 \d+, 10 \d+", capsys.readouterr().out)
    assert "validation_macro_f1" in metrics()[-1]
    path = run(small("validation_data=", "output_dir=out/own", "max_steps=1", "text.labels=[9, 10, 11, -1]"))
    assert AutoConfig.from_pretrained(path / "classifier.json").id2label == {0: "9", 1: "10", 2: "11", 3: "-1"}
    assert "4 labels: 9 12, 10 12, 11 0, -1 12" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train_data=one.jsonl"], r"train_data: every row has the label good, and to tell labels apart takes two"),
        (
            ["validation_data=odd.jsonl"],
            r"odd\.jsonl:2: the label 'odd' is not in train_data \(bad, fine, good\); corr",
        ),
        (
            ["text.labels=[bad, good]"],
            r"train\.jsonl:2: the label 'fine' is not in text\.labels \(bad, good\) \(and 11 ",
        ),
        (["text.labels=[bad]"], r"text\.labels: names one label, bad, and to choose takes two"),
        (["text.labels=[bad, bad]"], r"text\.labels: names bad twice"),
        (["max_length=65"], "max_length: 65 is more than the 64 tokens that this model can see"),
        (["base_model=nowhere"], "base_model: nowhere cannot be loaded as a language model"),
        (["base_model=other_kind"], "base_model: other_kind lacks 100% of the weights of a BertForSequenceClassific"),
        (["lora_target=[classifier]"], "lora_target: classifier is new and is trained whole"),
        (["lora_target=[q_lni]"], "'q_lni' names no layer of this DistilBertForSequenceClassification; nearest: q_lin"),
        (["validation_data=", "validation.split=0.9"], r"is not in the rows that validation\.split leaves"),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else "",
)
def test_a_mistake_gets_one_sentence(place, words, sentence) -> None:
    write(Path("one.jsonl"), [row for row in rows(9) if row["label"] == "good"])
    write(Path("odd.jsonl"), [rows(1)[0], {"text": "strange", "label": "odd"}])
    if words == ["base_model=other_kind"]:
        save(Path("other_kind"), "bert")
        weights = load_file("other_kind/model.safetensors")
        save_file({f"x.{key}": part for key, part in weights.items()}, "other_kind/model.safetensors", {"format": "pt"})
    if "validation.split=0.9" in words:
        write(Path("train.jsonl"), rows(4))
    with pytest.raises(PatinaError, match=sentence):
        run(small(*words))
    assert not Path("out/small/small").exists()


def test_the_shipped_config_runs_and_the_page_shows_how_to_ask_it(place, capsys) -> None:
    """The article's case: DistilBERT, rank 4, alpha 32, its queries alone, five passes at most."""
    Path("data/sentiment").mkdir(parents=True)
    for name, first in (("train", 0), ("test", 60)):
        lines = [f"{row['text']},{row['label']}\n" for row in rows(24, first)]
        Path(f"data/sentiment/{name}.csv").write_text("text,label\n" + "".join(lines))
    config = configfile.load(ROOT / "configs" / "sentiment.yaml", ["base_model=distilbert", "max_length=64"])
    assert (config.task_type, config.lora_rank, config.lora_alpha, config.lora_target) == (
        "text-classification",
        4,
        32,
        ("q_lin",),
    )
    path = run(config)
    page = (ROOT / "docs" / "text.md").read_text(encoding="utf-8")
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL) if "pipeline" in block]
    found: dict = {}
    exec(block.replace("a lovely film", "great film 101"), found)
    (alone,) = found["ask"](["great film 101"])
    assert f"{alone['label']}" in capsys.readouterr().out
    assert [alone["label"]] == told(tuned("distilbert", path), path, ["great film 101"])
    assert {"validation_accuracy", "validation_macro_f1"} <= metrics(str(config.output_dir))[-1].keys()
