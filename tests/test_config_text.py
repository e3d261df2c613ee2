"""The config of text mode: its keys, other tools' names for them, and what each mode says of the other's keys."""

from pathlib import Path

import pytest

from patina.config import Config, fields
from patina.configfile import ConfigError, dump, load
from patina.configmodes import MODES, is_foreign

MINIMAL = "task_type: text-generation\ntrain_data: ./answers.jsonl\nbase_model: ./lm\noutput_dir: ./out/lm\n"
PICTURES = "train_data_dir: ./pictures\nbase_model: ./base\noutput_dir: ./out/style\n"

LLAMA_FACTORY = """\
model_name_or_path: ./lm
task_type: causal_lm
stage: sft
do_train: true
finetuning_type: lora
dataset: ./answers.jsonl
cutoff_len: 512
template: instruction
output_dir: ./out/lm
lora_rank: 8
lora_alpha: 16
lora_target: q_proj,v_proj
lora_dropout: 0.05
use_rslora: true
quantization_bit: 4
neat_packing: true
per_device_train_batch_size: 4
gradient_accumulation_steps: 4
learning_rate: 2e-4
num_train_epochs: 3
lr_scheduler_type: cosine
bf16: true
"""


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Loads a config of the text given, from a file `run.yaml` in the working directory."""
    monkeypatch.chdir(tmp_path)

    def load_text(text: str, *overrides: str) -> Config:
        Path("run.yaml").write_text(text, encoding="utf-8")
        return load(Path("run.yaml"), overrides)

    return load_text


def refusal(read, text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text, *overrides)
    return str(caught.value).splitlines()


def test_a_minimal_config_has_the_defaults(read) -> None:
    config = read(MINIMAL)
    assert (config.task_type, config.train_data, config.base_model) == ("text-generation", "./answers.jsonl", "./lm")
    assert (config.text.template, config.text.train_on, config.text.packing) == ("auto", "answers", "auto")
    assert (config.max_length, config.quantize, config.lora_target) == (None, "none", "full")
    assert config.name == "lm"


def test_a_file_as_llama_factory_has_it(read) -> None:
    config = read(LLAMA_FACTORY)
    assert (config.train_data, config.max_length, config.quantize) == ("answers.jsonl", 512, "4bit")
    assert (config.text.template, config.text.packing) == ("instruction", "true")
    assert (config.lora_target, config.network.dropout, config.network.rslora) == (("q_proj", "v_proj"), 0.05, True)
    assert (config.batch_size, config.epochs, config.mixed_precision) == (4, 3, "bf16")


def test_several_files_and_the_home_folder(read, monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    config = read(MINIMAL.replace("./answers.jsonl", "[~/a.jsonl, b.xlsx]"), "validation_data=~/c.csv")
    assert config.train_data == ("/home/someone/a.jsonl", "b.xlsx")
    assert config.validation_data == "/home/someone/c.csv"


@pytest.mark.parametrize("word", ["train_data_dir", "dataset", "dataset_path"])
def test_the_data_may_be_called_as_in_image_mode(read, word) -> None:
    assert read(MINIMAL.replace("train_data", word)).train_data == "answers.jsonl"


def test_image_mode_takes_train_data_for_its_folder(read) -> None:
    assert read(PICTURES.replace("train_data_dir", "train_data")).train_data_dir == Path("pictures")
    lines = refusal(read, PICTURES.replace("train_data_dir: ./pictures", "train_data: [a, b]"))
    assert lines[0] == "run.yaml:1: train_data: is a list; name one folder of pictures"


def test_the_command_line_wins_under_either_name(read) -> None:
    assert read(MINIMAL, "dataset=other.jsonl").train_data == "other.jsonl"
    assert read(MINIMAL, "train_data=other.jsonl").train_data == "other.jsonl"
    (line,) = refusal(read, MINIMAL + "train_data_dir: ./other.jsonl\n")
    assert line == "run.yaml:5: train_data_dir: says other.jsonl, but train_data says ./answers.jsonl; keep one"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("text_encoder_lr: 1e-4", "text_encoder_lr: is for training on pictures"),
        ("resolution: 768", "resolution: is for training on pictures"),
        ("noise: {noise_offset: 0.1}", "noise.noise_offset: is for training on pictures"),
        ("preview.steps: 10", "preview.steps: is for training on pictures"),
        ("trigger_word: neon", "trigger_word: is for training on pictures"),
        ("network: {conv_rank: 4}", "network.conv_rank: is for training on pictures"),
    ],
)
def test_keys_of_image_mode_get_one_sentence(read, line, said) -> None:
    lines = refusal(read, f"{MINIMAL}{line}\n")
    assert lines[0] == f"run.yaml:5: {said}; leave it out, or write task_type: image"


@pytest.mark.parametrize(
    "line", ["max_length: 512", "text: {template: instruction}", "validation_data: a.jsonl", "validation.generate: 9"]
)
def test_keys_of_text_mode_get_one_sentence_in_image_mode(read, line) -> None:
    (said,) = refusal(read, f"{PICTURES}{line}\n")
    assert said.endswith("is for training on conversations; leave it out, or write task_type: text-generation")


@pytest.mark.parametrize("name", ["cache", "checkpoints", "Logs", "samples"])
def test_a_lora_folder_never_replaces_one_of_the_runs_own(read, name) -> None:
    sentence = f"{name} is a folder that runs keep in output_dir; write output_name: {name}_lora"
    (said,) = refusal(read, f"{MINIMAL}output_name: {name}\n")
    assert said.endswith(f"output_name: {sentence}")
    (said,) = refusal(read, MINIMAL.replace("./out/lm", f"./out/{name}"))
    assert said.endswith(sentence)
    assert read(f"{PICTURES}output_name: {name}\n").name == name  # there it is a file


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (MINIMAL.replace("train_data: ./answers.jsonl\n", ""), "train_data: is missing; write e.g. train_data: "),
        (
            MINIMAL + "network.algo: loha\n",
            "network.algo: loha is not for text-generation; write network.algo: lora",
        ),
        (
            MINIMAL + "network.algo: dora\nengine.shard: true\n",
            "network.algo: dora measures the base's weights, which engine.shard",
        ),
        (MINIMAL + "network.init: pissa\nquantize: 4bit\n", "network.init: pissa starts from weights that quantize"),
        (MINIMAL + "validation.every: 10\n", "validation.every: is given, but there is nothing to measure on"),
        (MINIMAL + "validation.generate: 10\n", "validation.generate: is given, but there is nothing to measure on"),
        (MINIMAL + "validation.split: 1\n", "validation.split: "),
        (MINIMAL + "validation.split: 0.1\nvalidation_data: v\n", "validation.split: is given beside validation_data"),
        (MINIMAL + "text.packing: sometimes\n", "text.packing: 'sometimes' is not one of: auto, true, false"),
        (MINIMAL + "quantize: 3bit\n", "quantize: '3bit' is not one of: none, 8bit, 4bit"),
        (MINIMAL + "text.tempalte: auto\n", "text.tempalte: unknown key; did you mean text.template?"),
        (MINIMAL + "max_length: 0\n", "max_length: 0 is too small"),
    ],
)
def test_what_does_not_fit_gets_one_sentence(read, text, said) -> None:
    (line,) = refusal(read, text)
    assert said in line


def test_a_dumped_config_loads_back_equal(read) -> None:
    config = read(LLAMA_FACTORY, "validation_data=[a.jsonl, b.jsonl]", "validation.every=7")
    assert read(dump(config)) == config


def test_the_demos_config_loads() -> None:
    assert load(Path("configs/demo_text.yaml")).train_data == "./data/demo/text_train/train.jsonl"


def test_what_pictures_and_texts_share_is_no_key_of_classification() -> None:
    pictures, texts, labels = (mode.keys for mode in MODES.values())
    assert pictures & texts == {"init_lora", "engine.fuse"}
    assert not pictures & labels
    assert all(is_foreign(key, "text-classification") for key in ("init_lora", "preview.every", "preview.prompts"))
    assert not any(is_foreign(key, mode) for mode in MODES for key in ("lora_rank", "network.rslora", "train_data"))


def test_every_key_of_the_text_section_belongs_to_a_kind_of_text_training() -> None:
    texts = {key for key in fields() if key.startswith("text.")}
    assert texts
    assert all(is_foreign(key, "image") for key in texts)
    assert all(any(not is_foreign(key, mode) for mode in MODES) for key in texts)


LABELS = "task_type: text-classification\ntrain_data: ./reviews.csv\nbase_model: ./bert\noutput_dir: ./out/labels\n"


@pytest.mark.parametrize("word", ["seq_cls", "SEQ_CLS", "sequence-classification", "classification"])
def test_classification_has_other_names(read, word) -> None:
    assert read(LABELS.replace("text-classification", word)).task_type == "text-classification"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            f"{LABELS}text.packing: true\n",
            "text.packing: is for training on conversations; leave it out, or write",
        ),
        (f"{LABELS}text: {{template: instruction}}\n", "text.template: is for training on conversations; leave it out"),
        (
            f"{LABELS}resolution: 768\n",
            "resolution: is for training on pictures; leave it out, or write task_type: image",
        ),
        (
            f"{MINIMAL}text.labels: [a, b]\n",
            "text.labels: is for training on labelled texts; leave it out, or",
        ),
        (f"{PICTURES}text.labels: [a, b]\n", "ts; leave it out, or write task_type: text-classification"),
        (LABELS.replace("train_data: ./reviews.csv\n", ""), "is missing; write e.g. train_data: ./data/reviews.csv"),
        (f"{LABELS}text.columns: [label]\n", "text.columns: has 'label'; write MEANING=HEADING, e.g. label=类别"),
        (
            f"{LABELS}validation.every: 10\n",
            "validation.every: is given, but there is nothing to measure on",
        ),
        (
            f"{LABELS}network.algo: dora\n",
            "network.algo: dora is not for text-classification; write network.algo: lora",
        ),
    ],
    ids=lambda words: words[-40:],
)
def test_classification_refuses_what_is_another_modes(read, text, said) -> None:
    (line,) = refusal(read, text)
    assert said in line


def test_classification_takes_its_own_keys(read) -> None:
    config = read(
        f"{LABELS}max_length: 128\nvalidation_data: v.csv\ntext: {{labels: [0, 1], columns: [text=a, label=b]}}\n"
    )
    assert (config.max_length, config.text.labels, config.text.columns) == (128, ("0", "1"), ("text=a", "label=b"))
    assert read(dump(config)) == config
