"""A run goes on only from a checkpoint of the same training: every key is decided, every difference named at once."""

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image
from test_run import SMALL, pictures

from patina import checkpoint, configfile, resume
from patina.config import fields
from patina.confignetwork import Network
from patina.errors import PatinaError
from patina.run import run

FREE = {
    *("train_data_dir", "metadata_path", "output_dir", "output_name", "save_steps", "keep_checkpoints", "resume"),
    *("epochs", "max_steps", "learning_rate", "text_encoder_lr", "weight_decay", "max_grad_norm", "scheduler"),
    *("warmup_steps", "mixed_precision", "save_precision", "metadata", "gradient_checkpointing", "init_lora"),
    *(
        "network.dora_export",
        "network.dora_rank",
        "dataset.cache_dir",
        "dataset.workers",
        "dataset.allow_links",
        "dataset.reg_dir",
        "validation.every",
        "validation.patience",
        "validation.data_dir",
        "engine.device",
        "engine.deterministic",
        "engine.capture",
        "engine.fuse",
        "engine.memory",
        "engine.shard",
        "engine.skip_bad_steps",
    ),
    *(f"preview.{key}" for key in ("every", "prompts", "negative_prompt", "steps", "guidance", "seed")),
}
"""May be others after a resume: where things are, how fast and far it goes, in which numbers, what is shown."""
OF_TEXTS = {
    *("train_data", "validation_data", "max_length", "preset"),
    *(f"text.{key}" for key in ("template", "columns", "train_on", "packing", "labels")),
    "validation.generate",
}
"""Are refused in a run on pictures."""
OTHER = {
    "captions": (
        ["clip_skip=2", "max_token_length=150", "dataset.caption_weights=true", "trigger_word=another"],
        [
            "captions and names was ",  # the trigger word is at the head of each
            "clip_skip was 1 and is 2",
            "max_token_length was 75 and is 150",
            "dataset.caption_weights was false and is true",
            "trigger_word was inkpt and is another",
        ],
    ),
    "noise": (
        ["noise.min_snr_gamma=5", "noise.noise_offset=0.1"],
        ["noise.min_snr_gamma was empty and is 5.0", "noise.noise_offset was 0.0 and is 0.1"],
    ),
    "prediction": (
        ["noise.prediction=v_prediction", "noise.zero_terminal_snr=true"],
        ["noise.prediction was epsilon and is v_prediction", "noise.zero_terminal_snr was false and is true"],
    ),
    "bases": (
        ["base_model=other", "vae=own_vae"],
        ["base_model was base and is other", "vae was empty and is own_vae"],
    ),
    "pictures": (
        [
            "resolution=128",
            "dataset.buckets=false",
            "dataset.upscale=true",
            "dataset.bucket_step=16",
            "dataset.repeats=2",
            "dataset.flip=true",
            "dataset.crop=random",
            "dataset.colour=0.1",
            "dataset.variants=3",
            "dataset.masks=files",
            "dataset.unmasked_weight=0.2",
            "dataset.reg_dir=pictures",
            "dataset.reg_weight=0.5",
            "train_data_dir=more",
            "metadata_path=more/metadata.csv",
        ],
        [
            "resolution was 64 and is 128",
            "dataset.buckets was true and is false",
            "dataset.upscale was false and is true",
            "dataset.bucket_step was 8 and is 16",
            "dataset.repeats was 1 and is 2",
            "dataset.flip was false and is true",
            "dataset.crop was centre and is random",
            "dataset.colour was 0.0 and is 0.1",
            "dataset.variants was 4 and is 3",
            "dataset.masks was off and is files",
            "dataset.unmasked_weight was 0.1 and is 0.2",
            "dataset.reg_weight was 1.0 and is 0.5",
            "regularisation pictures was 0 and is 2",
            "pictures was 2 and is 3",
            "pictures an epoch was 2 and is 6",
            "captions and names was ",
        ],
    ),
    "held out": (  # of three the one that was not there before
        ["train_data_dir=more", "metadata_path=more/metadata.csv", "validation.split=0.3"],
        ["validation.split was empty and is 0.3"],
    ),
    "steps": (
        ["batch_size=1", "gradient_accumulation_steps=2", "optimizer=adamw", "seed=4"],
        [
            "batch_size was 2 and is 1",
            "gradient_accumulation_steps was 1 and is 2",
            "optimizer was adamw8bit and is adamw",
            "seed was 3 and is 4",
        ],
    ),
    "network": (
        ["lora_rank=2", "lora_alpha=1", "lora_target=[to_q]", "train_text_encoder=false", "network.algo=loha"],
        [
            "lora_rank was 4 and is 2",
            "lora_alpha was 4.0 and is 1.0",
            "lora_target was attn and is ['to_q']",
            "train_text_encoder was true and is false",
            "network.algo was lora and is loha",
        ],
    ),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with two bases, an autoencoder, pictures, and a run of one step."""
    home = tmp_path_factory.mktemp("home")
    pictures(home / "pictures", count=2)
    pictures(home / "more", count=3)
    Image.linear_gradient("L").resize((64, 64)).save(home / "more/00-masklabel.png")
    tiny.sd15().save_pretrained(home / "base")
    (home / "other").symlink_to(home / "base")
    tiny.sd15(seed=1).vae.save_pretrained(home / "own_vae")
    text = SMALL.replace("max_steps: 6", "max_steps: 1").replace("save_steps: 2", "save_steps: 0")
    (home / "run.yaml").write_text(f"{text}lora_target: attn\ndataset: {{cache_dir: cache}}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        run(configfile.load(Path("run.yaml"), []))
    return home


@pytest.fixture
def given(home, monkeypatch):
    monkeypatch.chdir(home)
    return lambda *words: configfile.load(Path("run.yaml"), ["resume=auto", *words])


def test_every_key_is_decided(home) -> None:
    noted = set(checkpoint.load(home / "out/small/checkpoints/step-000001").numbers["settings"])
    derived = {"pictures", "pictures an epoch", "regularisation pictures", "captions and names"}
    assert noted - derived | FREE == set(fields()) - OF_TEXTS
    assert not noted & FREE
    assert {f"network.{key}" for key in Network.model_fields} <= noted | FREE


@pytest.mark.parametrize("group", OTHER)
def test_another_training_is_refused_with_every_difference(group, given) -> None:
    words, said = OTHER[group]
    with pytest.raises(PatinaError, match="step-000001 is of another training: ") as refused:
        run(given(*words, "max_steps=2"))
    for sentence in said:
        assert sentence in str(refused.value)
    assert str(refused.value).count(" was ") == len(said)
    assert "Write the earlier values to go on, or train anew in another output_dir" in str(refused.value)


def test_what_does_not_change_the_training_may_change(given, home, tmp_path) -> None:
    shutil.copytree(home / "out", tmp_path / "out")
    words = ["learning_rate=1e-4", "scheduler=constant", "weight_decay=0", "max_grad_norm=0.5", "max_steps=2"]
    words += ["save_precision=fp32", "mixed_precision=bf16", "gradient_checkpointing=true", "output_name=renamed"]
    words += ["noise.prediction=epsilon", "clip_skip=1", "lora_alpha=4", f"base_model={home}/base"]  # as they were
    path = run(given(*words, f"output_dir={tmp_path}/out/small"))
    assert path == tmp_path / "out/small/renamed.safetensors"
    assert checkpoint.newest(tmp_path / "out/small/checkpoints").name == "step-000002"


def test_an_earlier_versions_checkpoint_goes_on_and_says_what_it_does_not_know(given, home, tmp_path, capsys) -> None:
    shutil.copytree(home / "out", tmp_path / "out")
    facts = tmp_path / "out/small/checkpoints/step-000001" / checkpoint.FACTS
    told = json.loads(facts.read_text())
    told["settings"] = {key: value for key, value in told["settings"].items() if key not in ("clip_skip", "vae")} | {
        "gone": 1
    }
    facts.write_text(json.dumps(told | {"format": 2}))
    run(given("clip_skip=2", "max_steps=2", f"output_dir={tmp_path}/out/small"))
    assert (
        "is an earlier version's and does not say vae, clip_skip: taken to be as they are now"
        in capsys.readouterr().out
    )


def test_a_caption_written_anew_is_another_training(given, home, tmp_path) -> None:
    shutil.copytree(home / "pictures", tmp_path / "pictures")
    table = tmp_path / "pictures" / "metadata.csv"
    table.write_text(table.read_text().replace("number 1", "number one"))
    words = [f"train_data_dir={tmp_path}/pictures", f"metadata_path={table}", "max_steps=2"]
    with pytest.raises(PatinaError, match=r"another training: captions and names was \w{32} and is \w{32}\. Write"):
        run(given(*words))


def test_the_order_of_a_set_is_not_in_its_fingerprint() -> None:
    assert resume.fingerprint([b"a", b"b"]) == resume.fingerprint([b"b", b"a"]) != resume.fingerprint([b"ab", b""])


def test_the_loss_scale_goes_on_where_there_was_one() -> None:
    scaler, other = (torch.amp.GradScaler("cpu", init_scale=scale) for scale in (8.0, 2.0))
    resume.restore_scale(other, {})
    assert other.get_scale() == 2.0
    resume.restore_scale(other, scaler.state_dict())
    assert other.state_dict()["scale"] == 8.0
    idle = torch.amp.GradScaler("cpu", enabled=False)
    resume.restore_scale(idle, scaler.state_dict())
    assert idle.get_scale() == 1.0
