"""The config: what is read, under which names, what is refused and in which words, and that its page is fresh."""

import re
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from patina import configdocs
from patina.config import Config, Dataset, Engine, Network, Noise, Preview, Validation, fields, lists, sections
from patina.configdata import Subset
from patina.configfile import ConfigError, dump, load, spell
from patina.configmodes import MODES, is_foreign
from patina.configvalues import example
from patina.configwords import AGREED, ALIASES, EXTRA, SWITCHES, SYNONYMS, YES, canonical, suggest
from patina.errors import PatinaError

EXAMPLE = """\
train_data_dir: ./data/style_train
metadata_path: ./data/style_train/metadata.csv
base_model: ./models/Stable-diffusion/v1-5-pruned.safetensors
lora_rank: 8
lora_alpha: 16
batch_size: 4
epochs: 10
learning_rate: 2e-4          # PyYAML reads this as a string: accept it as the float it is
optimizer: adamw8bit
scheduler: cosine
output_dir: ./output/my_style_lora
save_steps: 100
"""
REQUIRED = {"train_data_dir": "./pictures", "base_model": "./base", "output_dir": "./out/style"}
MINIMAL = "".join(f"{key}: {value}\n" for key, value in REQUIRED.items())
JARGON = re.compile(
    r"pydantic|validat|type=|input|literal|Extra|str(ing)?_|int_|tuple|NoneType|https?:|Traceback|\bNone\b"
)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write `run.yaml` into the current folder and give its path as one would type it."""
    monkeypatch.chdir(tmp_path)

    def writer(text: str) -> Path:
        Path("run.yaml").write_text(text, encoding="utf-8")
        return Path("run.yaml")

    return writer


@pytest.fixture
def given(write):
    """Load the required keys and `text` below them, on line 4 and on."""
    return lambda text="", *overrides: load(write(MINIMAL + text), overrides)


@pytest.fixture
def refused(given):
    """The lines of the refusal of the required keys and `text` below them."""

    def lines(text="", *overrides):
        with pytest.raises(ConfigError) as caught:
            given(text, *overrides)
        message = str(caught.value)
        assert not JARGON.search(message), message
        return message.splitlines()

    return lines


def value_of(config: Config, key: str) -> object:
    section, _, leaf = key.rpartition(".")
    return getattr(getattr(config, section) if section else config, leaf)


def test_the_everyday_example(write):
    config = load(write(EXAMPLE))
    assert config == Config(
        train_data_dir=Path("data/style_train"),
        metadata_path=Path("data/style_train/metadata.csv"),
        base_model="./models/Stable-diffusion/v1-5-pruned.safetensors",
        lora_rank=8,
        lora_alpha=16.0,
        batch_size=4,
        epochs=10,
        learning_rate=2e-4,
        optimizer="adamw8bit",
        scheduler="cosine",
        output_dir=Path("output/my_style_lora"),
        save_steps=100,
    )
    assert config.name == "my_style_lora"


def test_derived_values(given):
    plain = given()
    assert (plain.name, plain.alpha, plain.te_learning_rate) == ("style", 8.0, 5e-5)
    assert plain.cache_dir == Path("out/style/cache")
    chosen = given("output_name: mine\nlora_alpha: 4\ntext_encoder_lr: 1e-5\ndataset: {bucket_step: 32, cache_dir: c}")
    assert (chosen.name, chosen.alpha, chosen.te_learning_rate) == ("mine", 4.0, 1e-5)
    assert (chosen.bucket_step, chosen.cache_dir) == (32, Path("c"))


@pytest.mark.parametrize(
    ("resolution", "step"), [(64, 8), (120, 8), (136, 16), (256, 32), (376, 40), (512, 64), (1024, 64)]
)
def test_the_bucket_step_follows_the_resolution(given, resolution, step):
    assert given(f"resolution: {resolution}").bucket_step == step


@pytest.mark.parametrize("output", [".", "./", "sub/.."])
def test_the_name_of_an_output_folder_that_is_not_spelled_out(write, tmp_path, output):
    Path(tmp_path, "run").mkdir()
    config = load(write(MINIMAL), [f"output_dir={output}", "train_data_dir=./pictures"])
    assert config.name == tmp_path.name


# How values are read


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("learning_rate: 2e-4", 2e-4),
        ("learning_rate: 2.0E-4", 2e-4),
        ("learning_rate: .0002", 2e-4),
        ("learning_rate: '2e-4'", 2e-4),
        ("lora_alpha: 16", 16.0),
        ("max_steps: 1e3", 1000),
        ("max_steps: 1_000", 1000),
        ("max_steps: -1", None),
        ("epochs: 3.0", 3),
        ("batch_size: 010", 10),
        ("batch_size: '4'", 4),
        ("mixed_precision: no", "fp32"),
        ("mixed_precision: off", "fp32"),
        ("mixed_precision: BF16", "bf16"),
        ("resume: no", None),
        ("resume: false", None),
        ("resume: null", None),
        ("resume: true", "auto"),
        ("resume: auto", "auto"),
        ("resume: ./out/checkpoints/step-000100", "./out/checkpoints/step-000100"),
        ("gradient_checkpointing: on", True),
        ("gradient_checkpointing: YES", True),
        ("train_text_encoder: off", False),
        ("trigger_word: no", "no"),
        ("trigger_word: 2024-13-45", "2024-13-45"),
        ("trigger_word: 007", "007"),
        ("trigger_word: 'null'", "null"),
        ("trigger_word: ''", None),
        ("trigger_word: ~", None),
        ("optimizer: AdamW8bit", "adamw8bit"),
        ("optimizer: adamw_8bit", "adamw8bit"),
        ("optimizer: adamw_bnb_8bit", "adamw8bit"),
        ("optimizer: adamw_torch", "adamw"),
        ("optimizer: AdamW", "adamw"),
        ("lora_target: attn-mlp", "attn-mlp"),
        ("lora_target: [to_q, to_k]", ("to_q", "to_k")),
        ("lora_target: to_q,to_k", ("to_q", "to_k")),
        ("lora_target: all-linear", "full"),
    ],
)
def test_values_as_people_write_them(given, line, value):
    read = value_of(given(line), line.partition(":")[0])
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize("key", [key for key in fields() if key not in REQUIRED])
def test_an_empty_value_is_the_default(given, key):
    config = given(f"{key}:\n")
    assert value_of(config, key) == fields()[key].default


def test_empty_sections_and_a_byte_order_mark(write):
    assert load(write("\ufeff" + MINIMAL + "noise:\ndataset:\npreview: {}\n")) == load(write(MINIMAL))


def test_paths_stay_as_written_but_for_the_home_folder(write, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    text = (
        "train_data_dir: ~/pictures\nbase_model: ~/base\noutput_dir: ../out\nresume: ~/c\ndataset: {cache_dir: ~/x}\n"
    )
    config = load(write(text))
    assert (config.train_data_dir, config.output_dir) == (Path("/home/someone/pictures"), Path("../out"))
    assert (config.base_model, config.resume) == ("/home/someone/base", "/home/someone/c")
    assert config.cache_dir == Path("/home/someone/x")


def test_a_section_key_may_be_written_with_a_dot(given):
    assert given("preview.every: 5\n") == given("preview:\n  every: 5\n")


# Overrides


def test_overrides_win_over_the_file(given):
    config = given("batch_size: 2\nnoise: {noise_offset: 0.1}\n", "batch_size=8", "noise.min_snr_gamma=5", "epochs=1e1")
    assert (config.batch_size, config.epochs) == (8, 10)
    assert config.noise == Noise(noise_offset=0.1, min_snr_gamma=5.0)


def test_an_override_under_another_name_wins_too(given):
    assert given("learning_rate: 1e-3\n", "lr=1e-5").learning_rate == 1e-5
    assert given("fp16: true\n", "mixed_precision=bf16").mixed_precision == "bf16"


@pytest.mark.parametrize("empty", ["max_steps=", "max_steps=null", "max_steps=~"])
def test_an_empty_override_restores_the_default(given, empty):
    assert given("max_steps: 5\n", empty).max_steps is None


def test_override_values_are_lists_or_plain_text(given):
    config = given(
        "", "preview.prompts=['a, b', c]", "trigger_word=#1: yes", "output_name='x y'", "noise={noise_offset: 1}"
    )
    assert config.preview.prompts == ("a, b", "c")
    assert (config.trigger_word, config.output_name, config.noise.noise_offset) == ("#1: yes", "x y", 1.0)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("epochs=x", "command line: epochs: 'x' is not a whole number; write e.g. epochs=10"),
        ("epochs", "command line: epochs: is not KEY=VALUE; write e.g. batch_size=4"),
        ("=3", "command line: =3: is not KEY=VALUE; write e.g. batch_size=4"),
        ("epoch=3", "command line: epoch: unknown key; did you mean epochs?"),
        (
            "preview.steps=0",
            "command line: preview.steps: 0 is too small, it must be at least 1; write e.g. preview.steps=20",
        ),
        (
            "preview.prompts=a, b",
            "command line: preview.prompts: 'a, b' is not a list; write e.g. preview.prompts=['a, b']",
        ),
    ],
)
def test_wrong_overrides_cite_the_command_line(refused, override, line):
    assert refused("", override) == [line]


def test_broken_brackets_in_an_override(refused):
    (line,) = refused("", "lora_target=[to_q")
    assert line.startswith("command line: lora_target: is not YAML")


def test_an_override_given_twice(refused):
    assert refused("", "epochs=3", "epochs=3") == ["command line: epochs: is given twice; keep one of them"]


# Other trainers' names

SAMPLES = {
    "batch_size": ("6", 6),
    "epochs": ("6", 6),
    "max_steps": ("6", 6),
    "lora_rank": ("6", 6),
    "save_steps": ("6", 6),
    "keep_checkpoints": ("3", 3),
    "warmup_steps": ("6", 6),
    "dataset.repeats": ("6", 6),
    "dataset.flip": ("true", True),
    "dataset.masks": ("files", "files"),
    "dataset.unmasked_weight": ("0.5", 0.5),
    "dataset.reg_dir": ("./other", Path("other")),
    "dataset.reg_weight": ("0.5", 0.5),
    "dataset.shuffle_tags": ("true", True),
    "dataset.keep_tags": ("6", 6),
    "dataset.tag_dropout": ("0.5", 0.5),
    "dataset.caption_dropout": ("0.5", 0.5),
    "dataset.caption_dropout_every_epochs": ("6", 6),
    "dataset.wildcards": ("true", True),
    "preview.every": ("6", 6),
    "lora_alpha": ("6", 6.0),
    "noise.min_snr_gamma": ("6", 6.0),
    "noise.noise_offset": ("0.5", 0.5),
    "noise.zero_terminal_snr": ("true", True),
    "dataset.caption_weights": ("true", True),
    "learning_rate": ("6e-4", 6e-4),
    "lora_target": ("[to_q]", ("to_q",)),
    "scheduler": ("linear", "linear"),
    "optimizer": ("AdamW", "adamw"),
    "resume": ("true", "auto"),
    "trigger_word": ("mystyle", "mystyle"),
    "base_model": ("./other", "./other"),
    "train_data_dir": ("./other", Path("other")),
    "validation_data": ("./v.jsonl", "./v.jsonl"),
    "max_length": ("77", 77),
    "quantize": ("4", "4bit"),
    "text.packing": ("true", "true"),
    "text.template": ("instruction-zh", "instruction-zh"),
    "validation.split": ("0.5", 0.5),
    "validation.every": ("9", 9),
    "validation.patience": ("2", 2),
    "network.dropout": ("0.1", 0.1),
    "network.rslora": ("true", True),
    "network.loraplus_ratio": ("8", 8.0),
}


MEASURED = ("validation.every", "validation.generate", "validation.patience")


def mode_of(key: str) -> str:
    """The lines that a key needs to have a meaning, where it has one for language models alone."""
    mode = next(mode for mode in MODES if not is_foreign(key, mode))
    task = f"task_type: {mode}\n" * (mode != "image")
    return task + ("validation.split: 0.5\n" if key in MEASURED else "")


@pytest.mark.parametrize("alias", ALIASES, ids=lambda alias: alias.word)
def test_every_alias_sets_its_key(write, alias):
    text, value = ("true", SWITCHES[alias.word]) if alias.word in SWITCHES else SAMPLES[alias.key]
    own = mode_of(alias.key) + "".join(f"{key}: {path}\n" for key, path in REQUIRED.items() if key != alias.key)
    config = load(write(own + f"{alias.word}: {text}\n"))
    assert value_of(config, alias.key) == value
    if alias.word not in SWITCHES:
        assert value_of(load(write(mode_of(alias.key) + MINIMAL), [f"{alias.word}={text}"]), alias.key) == value


def test_the_tables_name_keys_that_exist_and_words_that_are_not_keys():
    words = [row.word for row in ALIASES] + [row.word for row in AGREED]
    assert len(set(words)) == len(words)
    assert not set(words) & set(fields())
    assert {alias.key for alias in ALIASES} | set(SYNONYMS) | set(EXTRA) <= set(fields())


@pytest.mark.parametrize(("key", "word"), [(key, word) for key, words in SYNONYMS.items() for word in words])
def test_every_synonym_is_read(given, key, word):
    meant = SYNONYMS[key][word]
    for spelled in (word, word.upper()):
        assert value_of(given(f"{mode_of(key)}{key}: {spelled}"), key) == (
            fields()[key].default if meant is None else meant
        )


def test_a_choice_of_numbers_is_read_as_numbers(given, refused):
    assert given("max_token_length: 150").max_token_length == 150
    assert given("", "max_token_length=225").max_token_length == 225
    assert given("max_token_length:").max_token_length == 75  # as sd-scripts writes it
    (line,) = refused("max_token_length: 180")
    assert line == "run.yaml:4: max_token_length: '180' is not one of: 75, 150, 225; write e.g. max_token_length: 150"


def test_dataset_is_a_folder_or_a_section(write):
    rest = "base_model: b\noutput_dir: o\n"
    assert load(write(rest + "dataset: ./pictures\n")).train_data_dir == Path("pictures")
    assert load(write(rest + "dataset: {repeats: 3}\ntrain_dir: p\n")).dataset.repeats == 3


def test_two_names_with_one_value(given):
    assert given("lr: 2e-4\nunet_lr: 0.0002\nlearning_rate: 2.0e-4\n").learning_rate == 2e-4


def test_two_names_with_two_values(refused):
    lines = refused("lora_rank: 4\nnetwork_dim: 8\nfp16: true\nbf16: true\nlr: 1e-4\nunet_lr:\n")
    assert lines == [
        "run.yaml:5: network_dim: says 8, but lora_rank on line 4 says 4; keep one of them",
        "run.yaml:7: bf16: says bf16, but fp16 on line 6 says fp16; keep one of them",
        "run.yaml:9: unet_lr: says nothing, but lr on line 8 says 0.0001; keep one of them",
    ]


@pytest.mark.parametrize(
    ("text", "precision"),
    [
        ("bf16: true\nfp16: false", "bf16"),
        ("bf16: false", "fp16"),
        ("fp16: false\nmixed_precision: no", "fp32"),
        ("fp16:", "fp16"),
    ],
)
def test_precision_switches(given, text, precision):
    assert given(text).mixed_precision == precision


def test_fp16_switched_off_and_nothing_put_in_its_place(refused):
    assert refused("fp16: false") == [
        "run.yaml:4: fp16: is switched off, but mixed_precision is fp16; "
        "write mixed_precision: bf16 or mixed_precision: fp32"
    ]


@pytest.mark.parametrize("row", AGREED, ids=lambda row: row.word)
def test_words_that_say_what_we_do_anyway(given, refused, row):
    assert given(f"{row.word}: '{row.value}'") == given(f"{row.word}: '{row.value.upper()}'") == given(f"{row.word}:")
    for other in ("false", "full", "[1]"):
        assert refused(f"{row.word}: {other}") == [f"run.yaml:4: {row.word}: {row.why}; take {row.word} out"]
    if row.value in YES:
        assert given(f"{row.word}: yes") == given()


# Refusals


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("learning_rat", "learning_rate"),
        ("batchsize", "batch_size"),
        ("batch-size", "batch_size"),
        ("Batch_Size", "batch_size"),
        ("epoch", "epochs"),
        ("num_epoch", "epochs"),
        ("rank_pattern", "network.rank_pattern"),
        ("rank_patterns", "network.rank_pattern"),
        ("alpha_pattern", "network.alpha_pattern"),
        ("network_dims", "lora_rank"),
        ("pretrained_model_name", "base_model"),
        ("bucket_steps", "dataset.bucket_step"),
        ("device", "engine.device"),
        ("noise.offset", "noise.noise_offset"),
        ("noise.learning_rate", "learning_rate"),
        ("preview.min_snr_gamma", "noise.min_snr_gamma"),
        ("preview.step", "preview.steps"),
        ("preview.seeds", "preview.seed"),
        ("seeds", "seed"),
        ("previews", "preview"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(refused, word, key):
    assert refused(f"{word}: 1") == [f"run.yaml:4: {word}: unknown key; did you mean {key}?"]


@pytest.mark.parametrize("word", ["frobnicate", "logging_steps", "report_to", "x", "<<", "<<: {a: 1} #"])
def test_no_name_is_made_up_for_a_key_like_no_other(word):
    assert suggest(word) is None


def test_suggestions_are_keys():
    assert all(suggest(key) == key for key in fields())
    assert all(suggest(f"{key}s") in {*fields(), *sections()} for key in fields())


def test_everything_that_is_wrong_is_said_at_once(write):
    text = """\
# a run with many mistakes
train_data_dir: ./pictures
base_model:

batch_size: four
lr: fast
learning_rates: 1e-4
resolution: 500
optimizer: prodigy
noise:
  offset: 0.1

  min_snr_gamma: -1
  min_snr_gamma: 5
task_type: text-generations
warmup_steps: 200
max_steps: 100
lora_target: atn
use_lora: false
engine: cuda
lora_rank: [8]
preview: {prompts: a cat, steps: 0}
text_encoder_lr: 2
train_text_encoder: maybe
save_steps: 1.5
trigger_word: {a: b}
weight_decay: .nan
lora_alpha: inf
dataset: {bucket_step: 12, workers: -1}
"""
    with pytest.raises(PatinaError) as caught:
        load(write(text), ["epochs=x", "seed"])
    assert str(caught.value).splitlines() == [
        "run.yaml:3: base_model: is missing; write e.g. base_model: ./models/stable-diffusion-v1-5.safetensors",
        "run.yaml:5: batch_size: 'four' is not a whole number; write e.g. batch_size: 1",
        "run.yaml:6: lr: 'fast' is not a number; write e.g. lr: 0.0001",
        "run.yaml:7: learning_rates: unknown key; did you mean learning_rate?",
        "run.yaml:8: resolution: 500 is not a multiple of 8; write e.g. resolution: 512",
        "run.yaml:9: optimizer: 'prodigy' is not one of: adamw8bit, adamw; write e.g. optimizer: adamw8bit",
        "run.yaml:11: noise.offset: unknown key; did you mean noise.noise_offset?",
        "run.yaml:13: noise.min_snr_gamma: -1 is too small, it must be more than 0; write e.g. noise.min_snr_gamma: 5",
        "run.yaml:14: noise.min_snr_gamma: is given twice, first on line 13; keep one of them",
        "run.yaml:15: task_type: 'text-generations' is not one of: image, text-generation, text-classification; "
        "write e.g. task_type: text-generation",
        "run.yaml:16: warmup_steps: 200 does not fit into the 100 of max_steps; write warmup_steps: 10",
        "run.yaml:18: lora_target: 'atn' is not one of: full, attn, attn-mlp or a list of module names; "
        "write e.g. lora_target: attn",
        "run.yaml:19: use_lora: Patina trains a LoRA and nothing else; take use_lora out",
        "run.yaml:20: engine: is a group of keys; write its keys as engine.KEY: VALUE",
        "run.yaml:21: lora_rank: is a list; write e.g. lora_rank: 8",
        "run.yaml:22: preview.prompts: 'a cat' is not a list; write e.g. preview.prompts: [a cat]",
        "run.yaml:22: preview.steps: 0 is too small, it must be at least 1; write e.g. preview.steps: 20",
        "run.yaml:23: text_encoder_lr: 2 is too large, it must be less than 1; write e.g. text_encoder_lr: 5e-05",
        "run.yaml:24: train_text_encoder: 'maybe' is not true or false; write e.g. train_text_encoder: true",
        "run.yaml:25: save_steps: '1.5' is not a whole number; write e.g. save_steps: 500",
        "run.yaml:26: trigger_word: is a group of keys; write e.g. trigger_word: mystyle",
        "run.yaml:27: weight_decay: '.nan' is not a number; write e.g. weight_decay: 0.01",
        "run.yaml:28: lora_alpha: 'inf' is not a number; write e.g. lora_alpha: 16",
        "run.yaml:29: dataset.bucket_step: 12 is not a multiple of 8; write e.g. dataset.bucket_step: 64",
        "run.yaml:29: dataset.workers: -1 is too small, it must be at least 1; write e.g. dataset.workers: 4",
        "run.yaml: output_dir: is missing; write e.g. output_dir: output/my_style_lora",
        "command line: seed: is not KEY=VALUE; write e.g. batch_size=4",
        "command line: epochs: 'x' is not a whole number; write e.g. epochs=10",
    ]
    assert not JARGON.search(str(caught.value))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "text_encoder_lr: 1e-5\ntrain_text_encoder: false",
            "4: text_encoder_lr: is given, but train_text_encoder is false; "
            "leave it out, or write train_text_encoder: true",
        ),
        (
            "warmup_steps: 100\nmax_steps: 100",
            "4: warmup_steps: 100 does not fit into the 100 of max_steps; write warmup_steps: 10",
        ),
        (
            "dataset: {bucket_step: 136}\nresolution: 128",
            "4: dataset.bucket_step: 136 is wider than the resolution 128; leave it out",
        ),
        (
            'trigger_word: "x\\0"',
            "4: trigger_word: may not hold the character '\\x00'; write e.g. trigger_word: mystyle",
        ),
        (
            'lora_target: ["\\ud800"]',
            "4: lora_target: may not hold the character '\\ud800'; write e.g. lora_target: full",
        ),
        ("lora_target: []", "4: lora_target: is an empty list; write e.g. lora_target: full"),
        (
            "lora_target: [to_q, ~]",
            "4: lora_target: may hold only texts, none of them empty; write e.g. lora_target: full",
        ),
        (
            "preview: {prompts: [[a]]}",
            "4: preview.prompts: may hold only texts, none of them empty; "
            "write e.g. preview.prompts: [a red house by the sea]",
        ),
        (
            "noise.noise_offset: 1.5",
            "4: noise.noise_offset: 1.5 is too large, it must be at most 1; write e.g. noise.noise_offset: 0",
        ),
        (
            "output_name: none",
            "4: output_name: WebUIs keep the name 'none' for themselves; write output_name: none_lora",
        ),
        (
            "output_name: ' x'",
            "4: output_name: ' x' is empty or has spaces at its ends, so no prompt can call it; write output_name: x",
        ),
        (f"epochs: {'9' * 99}x", f"4: epochs: '{'9' * 57}...' is not a whole number; write e.g. epochs: 10"),
        ('trigger_word: x\n"a\\e[31m": 1', "5: a\\x1b[31m: unknown key; take it out; docs/config.md lists all keys"),
    ],
)
def test_refusals_and_their_words(refused, text, line):
    assert refused(text) == [f"run.yaml:{line}"]


@pytest.mark.parametrize("char", [*":>=,/\\.", "\t"])
def test_names_that_a_webui_would_cut(refused, char):
    (line,) = refused(f"output_name: {'my' + char + 'style'!r}".replace("\\t", "\t").replace("\\\\", "\\"))
    assert line.startswith("run.yaml:4: output_name: 'my")
    assert line.endswith("where WebUIs cut a LoRA's name; write output_name: my_style")


def test_an_output_folder_whose_name_no_prompt_can_call(write):
    with pytest.raises(ConfigError, match=r"^run.yaml:3: output_name: 'v1.5' contains \., .* write output_name: v1_5$"):
        load(write("train_data_dir: p\nbase_model: b\noutput_dir: ./out/v1.5\n"))
    assert load(Path("run.yaml"), ["output_name=v15"]).name == "v15"


@pytest.mark.parametrize("output", ["./pictures", "./pictures/out", "pictures/../pictures/out"])
def test_an_output_folder_among_the_pictures(write, output):
    with pytest.raises(ConfigError, match=r"^run.yaml:3: output_dir: lies in train_data_dir, .*; write output_dir: "):
        load(write(f"train_data_dir: pictures\nbase_model: b\noutput_dir: {output}\n"))


def test_a_rule_is_not_held_against_a_key_that_is_wrong_itself(refused):
    assert len(refused("warmup_steps: 100\nmax_steps: few")) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: b: c", "run.yaml:1: is not YAML (mapping values are not allowed here); look for "),
        ("a: 1\n\tb: 2", "run.yaml:2: is not YAML (found character '\\t' that cannot start any token); look for "),
        ("a: [1, 2", "run.yaml:1: is not YAML ("),
        ("a: 1\n---\nb: 2", "run.yaml:2: is not YAML ("),
        ("a: 1\nb: &x [1]\nc: *x", "run.yaml:2: anchors and aliases (& and *) are not supported; "),
        ("a: *x", "run.yaml:1: anchors and aliases (& and *) are not supported; "),
        ("a: !!python/name:os.system x", "run.yaml:1: tags such as 'tag:yaml.org,2002:python/name:os.system' "),
        ("a: 1\nb: !x {}", "run.yaml:2: tags such as '!x' are not supported; "),
        ("a: " + "[" * 100_000, "run.yaml:1: is nested more than 8 deep; "),
        ("a: 1\nb: \x01", "run.yaml:2: the character '\\x01' may not stand in YAML; take it out"),
        ("- a\n- b", "run.yaml: holds no keys; write lines such as base_model: "),
        ("just text", "run.yaml: holds no keys; write lines such as base_model: "),
        ("#" * 1_000_001, "run.yaml: is larger than 1,000,000 bytes; is this the right file?"),
    ],
)
def test_files_that_are_no_config(write, text, message):
    with pytest.raises(ConfigError) as caught:
        load(write(text))
    assert str(caught.value).startswith(message)
    assert not JARGON.search(str(caught.value))


def test_an_empty_file_lacks_the_required_keys(write):
    with pytest.raises(ConfigError) as caught:
        load(write(""))
    assert {line.split(": ")[1] for line in str(caught.value).splitlines()} == set(REQUIRED)


def test_a_key_that_is_no_word(refused):
    assert refused("? [a]\n: b") == ["run.yaml:4: key: is not a plain word; write KEY: VALUE"]


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="there is no such file"):
        load(tmp_path / "nothing.yaml")
    with pytest.raises(ConfigError, match="is a folder"):
        load(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\ntrigger_word: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"latin.yaml:2: is not UTF-8 text; save the file as UTF-8"):
        load(tmp_path / "latin.yaml")


# What is trained


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["network.conv_rank=4"], "network.conv_rank: is given, but algo lora adapts no convolutions"),
        (["network.algo=loha", "network.conv_alpha=4"], "network.conv_alpha: is given, but no convolutions"),
        (["network.factor=4"], "network.factor: is for algo lokr alone"),
        (["network.algo=lokr", "network.loraplus_ratio=4"], "network.loraplus_ratio: has no meaning for lokr"),
        (["network.algo=loha", "network.dropout=0.1"], "network.dropout: has no meaning for loha"),
        (["network.algo=dora", "network.init=pissa"], "network.init: pissa is a start for algo lora and locon"),
        (["network.init=olora", "network.max_norm=1"], "network.max_norm: cannot hold what init olora"),
        (["network.dora_rank=4"], "network.dora_rank: is given, but nothing is baked"),
        (["network.dora_export=baked"], "network.dora_export: baked is for algo dora alone"),
        (["network.rank_pattern=[MID]"], "network.rank_pattern: 'MID' is not PATTERN=NUMBER"),
        (["network.rank_pattern=[MID=1.5]"], "'1.5' in 'MID=1.5' is no whole number of 1 or more"),
        (["network.rank_pattern=['IN(=1']"], r"'IN\(' is no regular expression"),
        (["network.alpha_pattern=[MID=0]"], "'0' in 'MID=0' is no number of 1e-06 or more"),
        (["network.lr_pattern=[MID=-1]"], "'-1' in 'MID=-1' is no number of 0 or more"),
        (["network.lr_pattern=[MID=nan]"], "'nan' in 'MID=nan' is no number"),
        (["init_lora=a.safetensors", "network.algo=loha"], "init_lora: starts a LoRA"),
        (["init_lora=a.safetensors", "network.init=pissa"], "init_lora: starts a LoRA"),
    ],
)
def test_settings_of_the_network_that_do_not_fit_are_refused(refused, words, said):
    (line,) = refused("", *words)
    assert re.search(said, line)


# The resolved config

FULL = Config(
    train_data_dir=Path("no"),
    metadata_path=Path("a b/über: 'x' #1.csv"),
    base_model="123",
    family="sdxl",
    vae="a: b",
    output_dir=Path("/tmp/out/2024-01-01"),
    output_name="null",
    trigger_word="2e-4",
    resolution=768,
    lora_rank=4,
    lora_alpha=0.1 + 0.2,
    lora_target=("to_q", "true", "1"),
    train_text_encoder=True,
    clip_skip=2,
    max_token_length=225,
    quantize="8bit",
    batch_size=3,
    gradient_accumulation_steps=2,
    epochs=7,
    max_steps=1234,
    learning_rate=1e-7,
    text_encoder_lr=1 / 3,
    optimizer="adamw",
    weight_decay=0.0,
    ema_decay=0.99,
    max_grad_norm=0.0,
    scheduler="constant",
    warmup_steps=11,
    mixed_precision="fp32",
    save_precision="bf16",
    metadata="none",
    gradient_checkpointing=True,
    save_steps=0,
    keep_checkpoints=2,
    resume="./out: x",
    seed=2**32 - 1,
    network=Network(
        algo="lokr",
        conv_rank=2,
        conv_alpha=0.3,
        factor=4,
        rslora=True,
        rank_pattern=("attn2=3", r"mid\.[a-z: #]+=1e1"),
        alpha_pattern=("MID=0.5",),
        lr_pattern=("BASE=0", "=x=1e-5"),
        rank_dropout=0.1,
        module_dropout=0.2,
        max_norm=0.7,
    ),
    dataset=Dataset(
        buckets=False,
        bucket_step=8,
        upscale=True,
        repeats=3,
        cache_dir=Path("c"),
        workers=3,
        caption_weights=True,
        allow_links=True,
        flip=True,
        crop="random",
        colour=0.2,
        variants=6,
        masks="alpha",
        unmasked_weight=0.3,
        reg_dir=Path("class"),
        reg_weight=0.4,
        shuffle_tags=True,
        keep_tags=1,
        tag_dropout=0.1,
        caption_dropout=0.2,
        caption_dropout_every_epochs=3,
        caption_lines="joined",
        wildcards=True,
        subsets=(
            Subset(dir=Path("more"), metadata_path=Path("more.csv"), keep_tags=2, weight=0.5),
            Subset(dir=Path("d")),
        ),
    ),
    noise=Noise(prediction="v_prediction", min_snr_gamma=5.0, noise_offset=0.1, zero_terminal_snr=False),
    engine=Engine(device="cpu", capture="off", fuse="off", memory="off", deterministic=True, skip_bad_steps=2),
    preview=Preview(
        every=10,
        prompts=(
            "no",
            " spaced ",
            "a, b: c # d",
            "line\nbreak\n",
            "emoji \U0001f3a8 \x85 \u2028",
            "- [x]",
            "~",
            "x" * 300,
        ),
        negative_prompt="null",
        steps=3,
        guidance=0.0,
        seed=9,
    ),
    validation=Validation(every=7, data_dir=Path("other"), patience=2),
)


def test_the_full_config_changes_every_key_with_a_choice():
    same = {key for key, field in fields().items() if value_of(FULL, key) == field.default}
    # what LoKr, which factor needs, has not
    loras = {"dropout", "loraplus_ratio", "init", "dora_export", "dora_rank"}
    texts = {key for key in fields() if is_foreign(key, "image")} | {"train_data"}
    assert same == {"task_type", "init_lora", "validation.split"} | {f"network.{key}" for key in loras} | texts


@pytest.mark.parametrize("text", [MINIMAL, EXAMPLE, configdocs.EXAMPLE], ids=["minimal", "everyday", "docs"])
def test_a_dumped_config_loads_back_equal(write, text):
    config = load(write(text))
    assert load(write(dump(config))) == config


def test_a_dumped_config_with_every_key_loads_back_equal(write):
    assert load(write(dump(FULL))) == FULL


def test_a_dumped_config_has_every_key(given):
    tree = yaml.safe_load(dump(given()))
    assert list(tree) == list(Config.model_fields)
    flat = {f"{k}.{inner}" for k in sections() for inner in tree[k]} | (tree.keys() - sections().keys())
    assert flat == set(fields())


# The schema and its page


def test_a_config_is_frozen_and_closed(given):
    config = given()
    with pytest.raises(ValidationError):
        config.epochs = 3
    with pytest.raises(ValidationError):
        config.noise.noise_offset = 1.0
    with pytest.raises(ValidationError):
        Noise(offset=1.0)
    with pytest.raises(ValidationError):
        Preview(steps="20")
    hash(config)


NEEDED = {
    "train_data": ["task_type=text-generation"],
    "network.conv_rank": ["network.algo=locon"],
    "network.conv_alpha": ["network.algo=locon"],
    "network.factor": ["network.algo=lokr"],
    "network.dora_rank": ["network.algo=dora", "network.dora_export=baked"],
}
"""What must be given with a key for it to have a meaning."""


@pytest.mark.parametrize("key", fields())
def test_every_key_is_documented_where_it_is_declared(key):
    assert (fields()[key].description or "").strip().endswith(".")


@pytest.mark.parametrize("key", fields())
def test_every_key_has_an_example_that_it_takes(given, key):
    config = given(mode_of(key) or "", *NEEDED.get(key, ()), f"{key}={spell(example(key))}")
    expected = example(key)
    if key in lists():  # where a plain value stands for a section
        expected = tuple(lists()[key](dir=Path(folder)) for folder in expected)
    assert value_of(config, key) == expected


def test_the_page_is_fresh():
    fresh = configdocs.PAGE.read_text(encoding="utf-8") == configdocs.render()
    assert fresh, "docs/config.md is stale; run python -m patina.configdocs"


def test_the_page_names_every_word_and_its_examples_load(given):
    page = configdocs.render()
    assert all(f"`{key.rpartition('.')[2]}`" in page for key in fields())
    assert all(f"| `{alias.word}` | `{canonical(alias.word)}` |" in page for alias in ALIASES)
    first, second = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert first == configdocs.EXAMPLE
    assert given(second).preview.every == 100
