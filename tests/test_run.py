"""A whole run, from the command to the file: the same code that users run, on a tiny base of SD1.5's topology."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from patina import checkpoint, configdocs, configfile
from patina.data.captions import write_table
from patina.errors import PatinaError
from patina.lora.file import payload_sha256
from patina.lora.file import read as read_lora
from patina.run import run
from tests.tiny import save_sd15
from tests.toolbox import killed_once_saved, train_command

KEYS = {"step", "epoch", "loss", "learning_rate", "grad_norm", "seconds"}

SMALL = """\
train_data_dir: pictures
metadata_path: pictures/metadata.csv
base_model: base
output_dir: out/small
trigger_word: inkpt
resolution: 64
lora_rank: 4
batch_size: 2
learning_rate: 1e-3
mixed_precision: fp32
max_steps: 6
save_steps: 2
seed: 3
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_sd15(tmp_path_factory.mktemp("base"))


@pytest.fixture
def place(tmp_path, base, monkeypatch) -> Path:
    """A folder as a user has it: pictures of three shapes with a table, and a base; the working directory."""
    pictures(tmp_path / "pictures")
    (tmp_path / "base").symlink_to(base)
    (tmp_path / "run.yaml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pictures(folder: Path, count: int = 6) -> None:
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    rows = {}
    for number, size in zip(range(count), ((64, 64), (96, 64), (64, 96)) * count, strict=False):
        name = f"{number:02}.png"
        pixels = random.integers(0, 255, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
        rows[name] = f"a picture, number {number}"
    write_table(folder / "metadata.csv", rows)


def small(*overrides: str):
    return configfile.load(Path("run.yaml"), overrides)


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_example_of_the_docs_runs_as_it_stands(tmp_path, base, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "data" / "style_train", count=2)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "stable-diffusion-v1-5").symlink_to(base)
    (tmp_path / "run.yaml").write_text(configdocs.EXAMPLE)
    path = run(configfile.load(Path("run.yaml"), ["resolution=64", "epochs=2"]))
    assert path == Path("output/my_style_lora/my_style_lora.safetensors")
    file = read_lora(path)
    assert len(file.layers) == 264
    assert file.metadata["ss_network_dim"] == "8"
    assert file.metadata["ss_network_alpha"] == "16.0"
    assert "fp32 instead" in capsys.readouterr().out  # fp16 was asked for, on a CPU


@pytest.fixture(scope="module")
def finished(tmp_path_factory, base) -> Path:
    """The folder of one run of SMALL with previews; module-wide, since many tests look at it."""
    home = tmp_path_factory.mktemp("finished")
    pictures(home / "pictures")
    (home / "base").symlink_to(base)
    (home / "run.yaml").write_text(SMALL)
    before = Path.cwd()
    os.chdir(home)
    try:
        run(small("preview.every=3", "preview.steps=2", "preview.prompts=[a cat, inkpt]"))
    finally:
        os.chdir(before)
    return home / "out" / "small"


def test_a_run_writes_what_the_design_lists(finished) -> None:
    names = {path.name for path in finished.iterdir()}
    expected = {"small.safetensors", "small.json", "small.png", "small-000002.safetensors"}
    expected |= {"small-000004.safetensors", "checkpoints", "logs", "metrics.jsonl", "samples", "config.yaml"}
    assert expected <= names
    saved = sorted(path.name for path in (finished / "checkpoints").iterdir())
    assert saved == ["step-000002", "step-000004", "step-000006"]
    assert not [path for path in finished.rglob("*") if path.name.endswith(".part")]


def test_metrics_have_one_line_a_step(finished) -> None:
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(line.keys() >= KEYS for line in lines)
    assert all(0 < line["loss"] < 10 and line["grad_norm"] > 0 and line["seconds"] > 0 for line in lines)
    assert lines[0]["learning_rate"] == pytest.approx(1e-3)


def test_tensorboard_shows_curves_and_the_contact_sheet(finished) -> None:
    events = EventAccumulator(str(finished / "logs"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    tags = events.Tags()
    assert {"loss/raw", "loss/smoothed", "gradient_norm"} <= set(tags["scalars"])
    assert any("learning_rate" in tag for tag in tags["scalars"])
    assert [event.step for event in events.Scalars("loss/raw")] == [1, 2, 3, 4, 5, 6]
    (sheet,) = tags["images"]
    assert [event.step for event in events.Images(sheet)] == [0, 3, 6]


def test_the_file_has_what_web_uis_read(finished) -> None:
    metadata = read_lora(finished / "small.safetensors").metadata
    assert metadata["ss_base_model_version"] == "sd_v1"
    assert metadata["ss_v2"] == "False"
    assert metadata["ss_output_name"] == "small"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert metadata["sshs_model_hash"] == payload_sha256(finished / "small.safetensors")
    assert json.loads(metadata["ss_tag_frequency"])["1_inkpt"]["inkpt"] == 6
    sidecar = json.loads((finished / "small.json").read_text())
    assert sidecar["activation text"] == "inkpt"
    assert sidecar["sd version"] == "SD1"


def test_kohyas_folders_have_their_repeats_and_captions_in_their_names(place, capsys) -> None:
    (place / "pictures/metadata.csv").unlink()
    for folder, names in {"3_ink wash": ("00", "01"), "2_reeds": ("02",), "4_none": (), "more": ("03", "04")}.items():
        (place / "pictures" / folder).mkdir()
        for name in names:
            (place / f"pictures/{name}.png").rename(place / f"pictures/{folder}/{name}.png")
    (place / "pictures/05.png").unlink()
    (place / "pictures/3_ink wash/00.txt").write_text("a crane")
    result = run(small("metadata_path=", "max_steps=1", "dataset.repeats=2"))
    header = read_lora(result).metadata
    assert json.loads(header["ss_dataset_dirs"]) == {
        "2_reeds": {"n_repeats": 4, "img_count": 1},
        "3_ink wash": {"n_repeats": 6, "img_count": 2},
    }
    assert json.loads(header["ss_tag_frequency"]) == {
        "4_reeds": {"inkpt": 1, "reeds": 1},
        "6_ink wash": {"inkpt": 2, "a crane": 1, "ink wash": 1},
    }
    assert header["ss_num_train_images"] == "16"
    out = capsys.readouterr().out
    assert "pictures: no picture lies in 4_none" in out
    assert "pictures: the pictures in more are left out, as its name is not like 10_NAME" in out
    assert "pictures: pictures of 2_reeds (1), 3_ink wash (2); the names give the times an epoch, and" in out
    assert "captions: 2 from names of folders, 1 from .txt files" in out
    assert "3, shown 16 times an epoch: " in out


def test_the_header_holds_no_path_unless_asked(finished, place) -> None:
    public = read_lora(finished / "small.safetensors").metadata
    assert not [text for text in public.values() if str(finished.parents[1]) in text or str(Path.home()) in text]
    assert list(json.loads(public["ss_dataset_dirs"])) == ["pictures"]
    full = read_lora(run(small("metadata=full", "max_steps=1"))).metadata
    assert list(json.loads(full["ss_dataset_dirs"])) == [str(place / "pictures")]
    bare = read_lora(run(small("metadata=none", "max_steps=1", "output_dir=out/bare"))).metadata
    assert {key for key in bare if not key.startswith("modelspec.")} == {
        *("sshs_model_hash", "sshs_legacy_hash", "ss_v2", "ss_base_model_version", "ss_network_module"),
        *("ss_network_dim", "ss_network_alpha", "ss_network_args"),
    }
    assert bare["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert "modelspec.date" not in bare


def test_the_config_that_was_run_is_kept_and_loads(finished) -> None:
    kept = configfile.load(finished / "config.yaml")
    assert kept.lora_rank == 4
    assert kept.preview.prompts == ("a cat", "inkpt")


def test_the_file_gives_the_live_models_output_through_diffusers(place, base) -> None:
    path = run(small("save_precision=fp32"))
    saved = checkpoint.load(Path("out/small/checkpoints/step-000006"))
    assert any(tensor.abs().max() > 0 for key, tensor in saved.lora.items() if key.endswith("lora_B"))
    plain = StableDiffusionPipeline.from_pretrained(base, dtype=torch.float32)
    tuned = StableDiffusionPipeline.from_pretrained(base, dtype=torch.float32)
    tuned.load_lora_weights(path.parent, weight_name=path.name)
    live = with_deltas(plain, saved)
    tokens = plain.tokenizer(["inkpt, a house"], padding="max_length", max_length=77, return_tensors="pt").input_ids
    x, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([400])
    with torch.no_grad():
        untouched = StableDiffusionPipeline.from_pretrained(base, dtype=torch.float32)
        seen = [
            pipe.unet(x, t, pipe.text_encoder(tokens).last_hidden_state).sample for pipe in (live, tuned, untouched)
        ]
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-4, atol=1e-5)
    assert (seen[0] - seen[2]).abs().max() > 1e-4


def with_deltas(pipe: StableDiffusionPipeline, saved: checkpoint.Checkpoint) -> StableDiffusionPipeline:
    """Add alpha / rank * B A of a checkpoint to a pipeline's weights, by hand; alpha is the rank here."""
    for key, down in saved.lora.items():
        if key.endswith(".lora_A"):
            component, _, path = key.removesuffix(".lora_A").partition(".")
            weight = getattr(pipe, component).get_submodule(path).weight
            delta = saved.lora[key.replace("lora_A", "lora_B")].flatten(1) @ down.flatten(1)
            weight.data += delta.view(weight.shape)
    return pipe


def test_the_same_config_gives_the_same_numbers(place) -> None:
    run(small("save_steps=0"))
    run(small("save_steps=0", "output_dir=out/again", "dataset.cache_dir=out/small/cache"))
    one, two = (load_file(path) for path in (Path("out/small/small.safetensors"), Path("out/again/again.safetensors")))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_going_on_equals_never_having_stopped(place) -> None:
    run(small("output_dir=out/parts", "max_steps=6", "scheduler=constant", "save_steps=2"))
    run(small("output_dir=out/whole", "max_steps=6", "scheduler=constant", "save_steps=0"))
    folder = Path("out/parts/checkpoints")
    for step in (4, 6):
        for path in sorted((folder / f"step-{step:06}").iterdir()):
            path.unlink()
        (folder / f"step-{step:06}").rmdir()
    run(small("output_dir=out/parts", "max_steps=6", "scheduler=constant", "resume=auto"))
    one, two = (load_file(f"out/{name}/{name}.safetensors") for name in ("parts", "whole"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert losses(Path("out/parts")) == losses(Path("out/whole"))


def test_killed_in_the_middle_and_started_again_it_goes_on(place) -> None:
    folder = Path("out/small/checkpoints")
    step = killed_once_saved(folder, "--config", "run.yaml", "max_steps=400", "save_steps=2")
    again = train_command("--config", "run.yaml", f"max_steps={step + 2}", "resume=auto")
    assert again.returncode == 0, again.stderr
    assert f"from {step} on" in again.stdout
    lines = [json.loads(line)["step"] for line in Path("out/small/metrics.jsonl").read_text().splitlines()]
    assert lines == list(range(1, step + 3))


def test_an_earlier_run_is_never_written_over_unasked(place) -> None:
    run(small())
    before = Path("out/small/small.safetensors").read_bytes()
    with pytest.raises(PatinaError, match="holds an earlier run"):
        run(small())
    assert Path("out/small/small.safetensors").read_bytes() == before
    with pytest.raises(PatinaError, match="lora_rank"):
        run(small("resume=auto", "lora_rank=8"))


def test_a_narrowed_target_trains_what_it_names(place) -> None:
    path = run(small("lora_target=attn", "train_text_encoder=false", "max_steps=2"))
    names = read_lora(path).layers
    assert len(names) == 128
    assert all(name.startswith("lora_unet_") and "_attn" in name for name in names)


def test_captions_are_read_as_the_config_says(place, capsys) -> None:
    """With frozen text encoders from the cache, the second run's the first one's; previews alike."""
    table = place / "pictures" / "metadata.csv"
    table.write_text(table.read_text().replace("number 2", "number 2" + ", (red:1.4) house" * 60))
    reading = ["clip_skip=2", "max_token_length=150", "caption_weights=true", "max_steps=2", "dataset.cache_dir=cache"]
    frozen = [*reading, "train_text_encoder=false", "preview.every=2", "preview.steps=1"]
    path = run(small(*frozen))
    assert "1 of 6 captions are longer than 150 tokens" in capsys.readouterr().out
    metadata = read_lora(path).metadata
    assert (metadata["ss_clip_skip"], metadata["ss_max_token_length"]) == ("2", "150")
    entries = {file: file.stat().st_mtime_ns for file in (place / "cache").rglob("*.safetensors")}
    assert len(entries) == 6 + 6 + 1
    run(small(*frozen, "output_dir=out/again"))
    assert {file: file.stat().st_mtime_ns for file in (place / "cache").rglob("*.safetensors")} == entries
    assert losses(place / "out" / "again") == losses(place / "out" / "small")
    run(small(*frozen[1:], "output_dir=out/plain"))
    assert losses(place / "out" / "plain")[0] != losses(place / "out" / "small")[0]
    one, other = (place / "out" / name / "samples" / "step-000000" / "01.png" for name in ("small", "plain"))
    assert one.read_bytes() != other.read_bytes()
    run(small(*reading, "output_dir=out/learning"))
    # before B has learned anything the text encoder is still the base, asked anew; batches go in another order
    assert losses(place / "out" / "learning")[0] == pytest.approx(losses(place / "out" / "small")[0], rel=1e-4)


def test_zero_terminal_snr_reaches_objective_and_refuses_epsilon(place) -> None:
    with pytest.raises(PatinaError, match="needs v-prediction"):
        run(small("noise.zero_terminal_snr=true"))
    scheduler = Path("base/scheduler/scheduler_config.json")
    (place / "v").mkdir()
    for part in Path("base").resolve().iterdir():
        if part.name != "scheduler":
            (place / "v" / part.name).symlink_to(part)
    (place / "v" / "scheduler").mkdir()
    told = json.loads(scheduler.read_text()) | {"prediction_type": "v_prediction"}
    (place / "v" / "scheduler" / scheduler.name).write_text(json.dumps(told))
    path = run(small("base_model=v", "noise.zero_terminal_snr=true", "max_steps=1", "save_steps=0"))
    assert read_lora(path).metadata["ss_zero_terminal_snr"] == "True"
    run(small("base_model=v", "max_steps=1", "save_steps=0", "output_dir=out/plain"))
    assert losses(Path("out/plain")) != losses(Path("out/small"))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["lora_target=[to_z]"], "to_z"),
        (["lora_target=[mlp.fc1]", "train_text_encoder=false"], "train_text_encoder"),
        (["base_model=nowhere"], "nowhere"),
        (["base_model=run.yaml"], "not a whole safetensors file"),
        (["train_data_dir=nowhere", "metadata_path="], "nowhere"),
        (["warmup_steps=50", "epochs=2", "max_steps="], "warmup_steps"),
        (["resume=nowhere"], "nowhere"),
        (["engine.device=cuda"], "engine.device"),
    ],
)
def test_a_mistake_gets_one_sentence(place, overrides, sentence) -> None:
    if "cuda" in overrides[0] and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(PatinaError, match=sentence):
        run(small(*overrides))
    assert not Path("out/small/small.safetensors").exists()


def test_bad_input_ends_without_a_stack_trace(place) -> None:
    (place / "pictures" / "metadata.csv").write_text("filename,words\n00.png,x\n")
    missing = train_command("--config", "run.yaml")
    unknown = train_command("--config", "run.yaml", "lora_rnak=4")
    nowhere = train_command("--config", "nowhere.yaml")
    for ended, word in ((missing, "metadata.csv"), (unknown, "lora_rank"), (nowhere, "nowhere.yaml")):
        assert ended.returncode == 2
        assert word in ended.stderr
        assert "Traceback" not in ended.stderr


def test_an_unreadable_picture_is_named_and_nothing_is_trained(place) -> None:
    (place / "pictures" / "03.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    with pytest.raises(PatinaError, match=r"03\.png"):
        run(small())


def test_a_full_disk_is_one_sentence_and_the_checkpoint_before_is_whole(place) -> None:
    """A limit on the size of files is a full disk that needs no rights to make: the same system call fails."""
    run(small("max_steps=2"))
    folder = Path("out/small/checkpoints")
    before = (folder / "step-000002" / checkpoint.TENSORS).read_bytes()
    limit = len(before) // 2
    ended = train_command("--config", "run.yaml", "resume=auto", limit=limit)
    assert ended.returncode == 2
    assert "step-000004" in ended.stderr
    assert "free space" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert [path.name for path in folder.iterdir()] == ["step-000002"]
    assert (folder / "step-000002" / checkpoint.TENSORS).read_bytes() == before
