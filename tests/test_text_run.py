"""A whole run in text mode, from the command to the adapter folder: the same code that users run."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from patina import checkpoint, configfile
from patina.errors import PatinaError
from patina.lora import inject
from patina.run import run
from tests.tiny_text import llama, save
from tests.toolbox import ROOT, killed_once_saved, train_command

SMALL = """\
task_type: text-generation
train_data: train.jsonl
validation_data: other.jsonl
base_model: base
output_dir: out/small
lora_rank: 4
lora_alpha: 8
batch_size: 2
learning_rate: 1e-2
mixed_precision: fp32
save_precision: fp32
max_steps: 6
save_steps: 2
seed: 3
preview.every: 0
"""
# peft asks transformers' models for a property that transformers is renaming
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("base"))


@pytest.fixture
def place(tmp_path, base, monkeypatch) -> Path:
    """A folder as a user has it: questions with answers, others to measure on, and a base; the working directory."""
    prepare(tmp_path, base)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prepare(folder: Path, base: Path) -> None:
    for name, count in (("train", 9), ("other", 3)):
        rows = ({"instruction": f"{name} {n}?", "output": "yes " * (n % 4 + 1)} for n in range(count))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "base").symlink_to(base)
    (folder / "run.yaml").write_text(SMALL)


def small(*overrides: str):
    return configfile.load(Path("run.yaml"), overrides)


def metrics(folder: str) -> list[dict]:
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, base) -> Path:
    """The folder of one run of SMALL; module-wide, since many tests look at it."""
    home = tmp_path_factory.mktemp("finished")
    prepare(home, base)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        run(small())
    return home / "out" / "small"


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(40, 70)[None]).logits


def test_a_run_writes_what_other_programs_and_a_resume_need(finished) -> None:
    names = {path.name for path in finished.iterdir()}
    expected = {"small", "small-000002", "small-000004", "checkpoints", "logs", "metrics.jsonl", "config.yaml"}
    assert names == expected | {".lock"}
    files = {path.name for path in (finished / "small").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "chat_template.jinja"} <= files
    assert not [path for path in finished.rglob("*") if path.name.endswith(".part")]


def test_peft_reads_the_folder_and_gives_the_live_models_logits(finished, base) -> None:
    saved = checkpoint.load(finished / "checkpoints" / "step-000006")
    live = llama()
    inject.adapt(
        live, [key.removesuffix(".lora_A").partition(".")[2] for key in saved.lora if "lora_A" in key], 4, 8, 3
    )
    inject.load_state({"model": live}, saved.lora)
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(finished / "small")).eval()
    torch.testing.assert_close(logits(tuned), logits(live), rtol=1e-5, atol=1e-5)
    assert (logits(tuned) - logits(llama())).abs().max() > 1e-2


def test_the_adapters_config_says_what_was_trained(finished) -> None:
    facts = json.loads((finished / "small" / "adapter_config.json").read_text())
    assert (facts["r"], facts["lora_alpha"], facts["task_type"]) == (4, 8, "CAUSAL_LM")
    assert facts["base_model_name_or_path"] == "base"
    expected = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert facts["target_modules"] == expected


@pytest.mark.parametrize(
    "words",
    [
        ["network.rslora=true"],
        ["network.init=pissa"],
        ["network.rank_pattern=[layers.0=2]", "network.alpha_pattern=[layers.1=1]"],
        ["lora_target=attn", "network.loraplus_ratio=8", "network.dropout=0.1"],
        ["lora_target=[q_proj, lm_head]"],
        ["network.algo=dora", "network.rslora=true"],
    ],
    ids=lambda words: words[0],
)
def test_every_way_of_adapting_comes_out_of_peft_as_it_was_trained(place, words) -> None:
    path = run(small(*words, "max_steps=3", "save_steps=0"))
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), str(path)).eval()
    again = run(small(*words, "max_steps=3", "save_steps=0", "resume=auto"))
    assert load_file(again / "adapter_model.safetensors").keys() == load_file(path / "adapter_model.safetensors").keys()
    loss = metrics("out/small")[-1]["validation_loss"]
    total = count = 0
    words_of = AutoTokenizer.from_pretrained("base")
    for line in Path("other.jsonl").read_text().splitlines():
        row = json.loads(line)
        head = f"<|im_start|>user\n{row['instruction']}<|im_end|>\n<|im_start|>assistant\n"
        start = len(words_of(head)["input_ids"])
        ids = torch.tensor([words_of(f"{head}{row['output']}<|im_end|>")["input_ids"]])
        with torch.no_grad():
            chances = tuned(input_ids=ids).logits[0, start - 1 : -1].log_softmax(-1)
        total -= chances.gather(1, ids[0, start:, None]).sum().item()
        count += ids.shape[1] - start
    assert loss == pytest.approx(total / count, rel=1e-4)


def test_curves_for_each_step_and_the_validation(finished) -> None:
    events = EventAccumulator(str(finished / "logs"), size_guidance={"scalars": 0})
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"loss/raw", "perplexity", "token_accuracy", "learning_rate/model", "gradient_norm"} <= tags
    assert {"speed/tokens_per_second", "validation/loss", "validation/token_accuracy"} <= tags
    assert [event.step for event in events.Scalars("perplexity")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in events.Scalars("validation/loss")] == [2, 4, 6]
    lines = metrics(str(finished))
    assert lines[0]["perplexity"] == pytest.approx(2.718281828 ** lines[0]["loss"])
    assert all(0 <= line["token_accuracy"] <= 1 and line["speed_tokens_per_second"] > 0 for line in lines)
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_going_on_equals_never_having_stopped(place) -> None:
    run(small("output_dir=out/parts"))
    run(small("output_dir=out/whole", "save_steps=0"))
    for step in (4, 6):
        folder = Path(f"out/parts/checkpoints/step-{step:06}")
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    run(small("output_dir=out/parts", "resume=auto"))
    one, two = (load_file(f"out/{name}/{name}/adapter_model.safetensors") for name in ("parts", "whole"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert [line["loss"] for line in metrics("out/parts")] == [line["loss"] for line in metrics("out/whole")]


def test_killed_in_the_middle_and_started_again_it_goes_on(place) -> None:
    folder = Path("out/small/checkpoints")
    step = killed_once_saved(folder, "--config", "run.yaml", "max_steps=4000", "save_steps=2")
    again = train_command("--config", "run.yaml", f"max_steps={step + 2}", "resume=auto")
    assert again.returncode == 0, again.stderr
    assert f"from {step} on" in again.stdout
    assert [line["step"] for line in metrics("out/small")] == list(range(1, step + 3))


def test_the_embedded_model_learns_by_the_command(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    words = ["task_type=text-generation", "train_data=data/demo/text_train/train.jsonl", "base_model=data/demo/lm"]
    words += [f"output_dir={tmp_path / 'out'}", "batch_size=4", "max_steps=8", "learning_rate=5e-3", "optimizer=adamw"]
    (tmp_path / "run.yaml").write_text("")
    ended = train_command("--config", str(tmp_path / "run.yaml"), *words)
    assert ended.returncode == 0, ended.stderr
    assert "1,200 rows" in ended.stdout
    assert "read back and verified" in ended.stdout
    assert "written by the template: the tokenizer's own" in ended.stdout
    losses = [line["loss"] for line in metrics(str(tmp_path / "out"))]
    assert losses[-1] < losses[0]


def test_packing_is_said_and_gives_fewer_steps(place, capsys) -> None:
    run(small("text.packing=true", "max_length=100", "max_steps=", "epochs=1", "save_steps=0"))
    packed = len(metrics("out/small"))
    assert "packed in rows of 100 tokens" in capsys.readouterr().out
    run(small("max_steps=", "epochs=1", "save_steps=0", "output_dir=out/alone"))
    assert "each on its own beside others of its length (packed they would make only" in capsys.readouterr().out
    assert packed < len(metrics("out/alone"))


def test_headings_are_named_or_guessed_and_it_is_said(place, capsys) -> None:
    Path("table.csv").write_text("nr,title,body\n" + "".join(f"{n},what {n}?,yes {n}\n" for n in range(6)))
    words = ["train_data=table.csv", "validation_data=", "max_steps=1", "save_steps=0"]
    run(small(*words))
    assert "guessed that 'title' is the question and 'body' the answer" in capsys.readouterr().out
    run(small(*words, "output_dir=out/named", "text.columns=[question=body, answer=title]"))
    assert "guessed" not in capsys.readouterr().out
    assert metrics("out/named")[0]["loss"] != metrics("out/small")[0]["loss"]
    with pytest.raises(PatinaError, match=r"text\.columns: has 'body'; write MEANING=HEADING"):
        small(*words, "text.columns=[body]")


@pytest.mark.parametrize("bits", ["4bit", "fp8"])
def test_quantised_and_recomputed_it_trains_too(place, bits) -> None:
    save(Path("wide"), llama(hidden_size=64, intermediate_size=128))  # bitsandbytes rounds in blocks of 64
    run(small("base_model=wide", f"quantize={bits}", "gradient_checkpointing=true", "max_steps=4", "save_steps=0"))
    losses = [line["loss"] for line in metrics("out/small")]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["lora_target=[q_prj]"], "'q_prj' names no layer of this LlamaForCausalLM; nearest: q_proj"),
        (["base_model=nowhere"], "base_model: nowhere cannot be loaded as a language model"),
        (["train_data=nowhere.jsonl"], r"nowhere\.jsonl"),
        (["max_length=300"], "max_length: 300 is more than the 256 tokens that this model can see"),
        (["max_length=20"], "train_data: none of its 9 rows has an answer within max_length: 20"),
        (["text.template=nowhere.jinja"], r"text\.template: 'nowhere\.jinja' is none of auto"),
        (["text_encoder_lr=1e-4"], "text_encoder_lr: is for training on pictures; leave it out"),
        (["resolution=1024"], "resolution: is for training on pictures; leave it out"),
        (["network.algo=loha"], r"network\.algo: loha is not for text-generation; write network\.algo: lora"),
        (["warmup_steps=6"], "warmup_steps: 6 does not fit"),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else "",
)
def test_a_mistake_gets_one_sentence(place, overrides, sentence) -> None:
    with pytest.raises(PatinaError, match=sentence):
        run(small(*overrides))
    assert not Path("out/small/small").exists()


def test_other_texts_are_another_training(place) -> None:
    run(small("max_steps=1", "save_steps=0"))
    told = Path("train.jsonl").read_text()
    Path("train.jsonl").write_text("".join(reversed(told.splitlines(keepends=True))))
    run(small("max_steps=2", "resume=auto", "save_steps=0"))  # in another order they are the same
    Path("train.jsonl").write_text(told.replace("train 4?", "train x?"))
    with pytest.raises(PatinaError, match=r"another training: words was \w{32} and is \w{32}\. Write"):
        run(small("max_steps=3", "resume=auto"))
