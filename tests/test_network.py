"""The `network:` section in whole runs: every algorithm learns, goes on to the bit, and exports what it learned."""

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from test_lora_algorithms import assert_same, with_file
from test_run import pictures

from patina import checkpoint, configfile
from patina.config import Config
from patina.errors import PatinaError
from patina.families import FAMILIES
from patina.family import narrow
from patina.lora import inject, plan
from patina.lora.file import read_parts
from patina.lora.norms import length
from patina.run import run

SD15 = FAMILIES["sd15"]
SMALL = """\
train_data_dir: pictures
metadata_path: pictures/metadata.csv
base_model: base
output_dir: out
output_name: small
resolution: 64
lora_rank: 4
lora_alpha: 2
batch_size: 2
learning_rate: 3e-2
mixed_precision: fp32
save_precision: fp32
scheduler: constant
max_steps: 4
save_steps: 2
dataset: {cache_dir: cache}
"""
RUNS = {
    "lora": ["network.loraplus_ratio=4", "network.lr_pattern=[MID=1e-3, BASE=0]", "optimizer=adamw"],
    "lora that drops": [
        *(
            "network.dropout=0.1",
            "network.rank_dropout=0.3",
            "network.module_dropout=0.2",
            "gradient_checkpointing=true",
        )
    ],
    "locon": [
        "network.algo=locon",
        "network.conv_rank=2",
        "network.rslora=true",
        "network.rank_pattern=['IN0[0-4]=3']",
        "network.alpha_pattern=[attn2=1.5, OUT.*=5]",
    ],
    "pissa": ["network.init=pissa"],
    "dora": ["network.algo=dora", "network.conv_rank=2"],
    "loha": ["network.algo=loha", "network.rank_dropout=0.2", "network.module_dropout=0.2", "network.max_norm=0.1"],
    "lokr": ["network.algo=lokr", "network.factor=4", "network.conv_rank=1"],
}
MODULES = {"lora": 264, "lora that drops": 264, "locon": 349, "pissa": 264, "dora": 349, "loha": 264, "lokr": 349}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("home")
    pictures(home / "pictures", count=3)
    tiny.save_sd15(home / "base")
    (home / "run.yaml").write_text(SMALL)
    return home


@pytest.fixture
def given(home, monkeypatch):
    monkeypatch.chdir(home)
    shutil.rmtree("out", ignore_errors=True)
    return lambda *words: configfile.load(Path("run.yaml"), words)


def live(config: Config, step: int) -> StableDiffusionPipeline:
    """A pipeline that carries the adapters of a checkpoint, as the run had them."""
    pipe = StableDiffusionPipeline.from_pretrained("base")
    modules = {}
    for component, ends in narrow(SD15, "full", config.network.convolutions).items():
        modules[component] = getattr(pipe, component)
        recipe = plan.recipe(config.network, component, config.lora_rank, config.lora_alpha)
        inject.adapt(modules[component], ends, config.lora_rank, config.alpha, config.seed, recipe)
    inject.load_state(modules, checkpoint.load(Path(f"out/checkpoints/step-{step:06}")).lora)
    return pipe


def base() -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained("base")


@pytest.mark.parametrize("name", RUNS)
def test_every_algorithm_learns_goes_on_to_the_bit_and_exports_what_it_learned(name, given):
    config = given(*RUNS[name])
    path = run(config)
    whole = load_file(path)
    assert len({key.partition(".")[0] for key in whole}) == MODULES[name]
    shutil.rmtree("out/checkpoints/step-000004")
    run(given(*RUNS[name], "resume=auto"))
    again = load_file(path)
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    differ = 1 if "BASE=0" in str(RUNS[name]) else 0  # the text encoder was left as it starts
    shown = live(config, 4)
    assert_same(shown, with_file(base(), path), base(), close=1e-3, skip=differ)


def test_what_stands_at_zero_stays_and_other_rates_are_kept_apart(given, capsys):
    run(given(*RUNS["lora"], "max_steps=2"))
    saved = checkpoint.load(Path("out/checkpoints/step-000002")).lora
    moved = {key: bool(tensor.any()) for key, tensor in saved.items() if key.endswith("lora_B")}
    assert all(value == key.startswith("unet.") for key, value in moved.items())
    sizes = {block: [] for block in ("mid_block", "up_blocks")}
    for key, tensor in saved.items():
        if key.endswith("attn2.to_q.lora_B"):
            sizes.get(key.split(".")[1], []).append(tensor.abs().max().item())
    assert max(sizes["mid_block"]) < 0.1 * min(sizes["up_blocks"])  # at 4e-3 instead of 0.12
    said = capsys.readouterr().out
    assert "learning rate 0.03, 0.12, 0.001, 0.004" in said
    line = json.loads(Path("out/metrics.jsonl").read_text().splitlines()[0])
    assert line["learning_rates"]["unet at 0.12"] == pytest.approx(0.12)
    assert line["learning_rate"] == pytest.approx(0.03)


def test_a_limit_holds_every_layers_change(given):
    config = given(*RUNS["loha"])
    run(config)
    adapters = inject.adapters(live(config, 4).unet).values()
    lengths = [length(adapter).item() for adapter in adapters]
    assert max(lengths) == pytest.approx(0.1, rel=1e-4)
    assert max(lengths) <= 0.1 * (1 + 1e-5)


@pytest.mark.parametrize(
    ("name", "module", "dim", "alpha", "args"),
    [
        ("lora", "networks.lora", "4", "2.0", {"loraplus_lr_ratio": "4.0"}),
        ("locon", "networks.lora", "4", "4.0", {"conv_dim": "2", "conv_alpha": "2", "rs_lora": "True"}),
        ("pissa", "networks.lora", "8", "2.0", {}),
        ("loha", "lycoris.kohya", "4", "2.0", {"algo": "loha", "rank_dropout": "0.2", "module_dropout": "0.2"}),
        ("lokr", "lycoris.kohya", "4", "2.0", {"algo": "lokr", "conv_dim": "1", "conv_alpha": "1", "factor": "4"}),
    ],
)
def test_the_header_says_how_it_was_trained(name, module, dim, alpha, args, given):
    path = run(given(*RUNS[name], "max_steps=1"))
    _, entries = read_parts(path)
    assert entries["ss_network_module"] == module
    assert (entries["ss_network_dim"], entries["ss_network_alpha"]) == (dim, alpha)
    assert json.loads(entries["ss_network_args"]) == args


def test_dora_is_baked_for_diffusers_and_says_what_it_leaves_out(given, capsys):
    config = given(*RUNS["dora"], "network.dora_export=baked", "network.dora_rank=40")
    path = run(config)
    assert "DoRA baked into a LoRA of rank 40, which leaves out 0." in capsys.readouterr().out
    tuned = base()
    tuned.load_lora_weights(path.parent, weight_name=path.name)
    assert_same(live(config, 4), tuned, base(), close=0.05)  # what rank 40 of up to 64 leaves out


def test_a_pattern_that_fits_nothing_is_told_the_blocks(given):
    with pytest.raises(PatinaError, match=r"network\.rank_pattern: 'IN09=4' fits no adapted layer.*IN01.*OUT11"):
        run(given("network.rank_pattern=[IN01=2, IN09=4]"))


def test_another_network_cannot_go_on(given):
    run(given("max_steps=2"))
    with pytest.raises(PatinaError, match=r"network\.rslora"):
        run(given("network.rslora=true", "resume=auto"))


def test_a_rank_beyond_a_layers_size_has_no_main_directions(given):
    with pytest.raises(PatinaError, match=r"pissa needs a rank of at most 16 in down_blocks\.0"):
        run(given("network.init=pissa", "lora_rank=17"))


def test_a_run_starts_from_an_earlier_file_and_says_what_it_took(given, capsys):
    first = run(given("max_steps=1")).rename("first.safetensors")
    words = ["init_lora=first.safetensors", "lora_rank=6", "learning_rate=1e-8", "weight_decay=0", "max_steps=1"]
    path = run(given(*words, "output_dir=out/later"))
    assert "init_lora: first.safetensors: 264 of its 264 layers start this LoRA's 264" in capsys.readouterr().out
    assert_same(with_file(base(), path), with_file(base(), first), base(), close=1e-3)
    with pytest.raises(PatinaError, match=r"nowhere\.safetensors: there is no such file"):
        run(given("init_lora=nowhere.safetensors", "output_dir=out/nowhere"))
