"""Every algorithm on every family: it trains, its file is sound, and strangers read what was trained."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import tiny
import torch
from safetensors.torch import load_file
from test_families import COUNTS, grammar
from test_lora_algorithms import assert_same, with_file

from patina.confignetwork import Network
from patina.export import Exporter
from patina.families import FAMILIES
from patina.families.sd15 import CLIP_ATTENTION, CLIP_MLP
from patina.family import Family, ends_in, narrow
from patina.lora import inject, metadata, plan
from patina.lora.check import problems
from patina.lora.file import read_parts
from patina.lora.names import file_key, module_names
from patina.tasks.image import ImageTask

RANK, ALPHA = tiny.RANK, tiny.ALPHA
CLOSE = 1e-3
"""Of the largest number of an output, in fp32."""
NETWORKS = {
    "lora": Network(),
    "rslora": Network(rslora=True),
    "locon": Network(algo="locon", conv_rank=2, conv_alpha=1.5),
    "dora": Network(algo="dora", conv_rank=2),
    "loha": Network(algo="loha", conv_rank=2),
    "lokr": Network(algo="lokr", conv_rank=2, factor=4),
}
PARTS = {
    "lora": {"lora_down.weight", "lora_up.weight", "alpha"},
    "rslora": {"lora_down.weight", "lora_up.weight", "alpha"},
    "locon": {"lora_down.weight", "lora_up.weight", "alpha"},
    "dora": {"lora_down.weight", "lora_up.weight", "alpha", "dora_scale"},
    "loha": {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "alpha"},
    "lokr": {"lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "alpha"},
}
ANOTHER = {"sd15": "v_prediction", "sd2": "epsilon", "sdxl": "v_prediction"}
"""What bases of a family can predict besides what the tiny ones do."""
CASES = [(family, name, None) for family in FAMILIES for name in NETWORKS]
CASES += [(family, "lora", prediction) for family, prediction in ANOTHER.items()]
PRESETS = {
    # of 16 (SDXL: 70) transformer layers with 8 attention and 2 feed-forward layers each; 2 projections a block
    "sd15": {"attn": (128, 48), "attn-mlp": (160, 72), "full": (192, 72)},
    "sd2": {"attn": (128, 92), "attn-mlp": (160, 138), "full": (192, 138)},
    "sdxl": {"attn": (560, 48, 128), "attn-mlp": (700, 72, 192), "full": (722, 72, 192)},
}


class Trained(NamedTuple):
    """A model after two steps, and its file."""

    family: Family
    pipe: tiny.Pipeline
    modules: dict[str, torch.nn.Module]
    exporter: Exporter
    path: Path


def base(family: Family, prediction: str | None = None) -> tiny.Pipeline:
    return tiny.PIPELINES[family.name](**({"prediction_type": prediction} if prediction else {}))


def train(family: Family, network: Network, folder: Path, prediction: str | None = None) -> Trained:
    """Adapt all components, take two steps on two pictures, and export as a run does."""
    pipe = base(family, prediction)
    for component, ends in narrow(family, "full", network.convolutions).items():
        recipe = plan.recipe(network, component, RANK, ALPHA)
        inject.adapt(getattr(pipe, component), ends, RANK, ALPHA, 0, recipe)
    task = ImageTask(family, pipe, family.objective(pipe.scheduler), tuple(family.targets), seed=0)
    learn(task, steps=2)
    alpha = plan.file_alpha(network, RANK, ALPHA)
    facts = metadata.TrainingFacts(
        output_name="style", network_dim=RANK, network_alpha=alpha, training_started_at=0, num_train_images=2
    )
    spec = metadata.Modelspec(prediction_type=pipe.scheduler.config.prediction_type)
    modules = dict(task.adapted())
    exporter = Exporter(family, modules, folder, "style", alpha, torch.float32, facts, spec, "public")
    return Trained(family, pipe, modules, exporter, exporter.final(2, 1.0))


def learn(task: ImageTask, steps: int) -> None:
    """The latents are large enough for the middle block to have four places: attention over one learns nothing."""
    generator = torch.Generator().manual_seed(7)
    batch = {
        "captions": list(tiny.CAPTIONS),
        "mean": torch.randn(2, 4, 16, 16, generator=generator),
        "std": torch.full((2, 4, 16, 16), 0.1),
        "epoch": 0,
        "places": [0, 1],
        "time_ids": torch.tensor([[128, 128, 0, 0, 128, 128]] * 2, dtype=torch.float32),
    }
    adapters = [adapter for module in task.adapted().values() for adapter in inject.adapters(module).values()]
    weights = [weight for adapter in adapters for weight in adapter.weights.values()]
    optimizer = torch.optim.AdamW(weights, lr=0.03, weight_decay=0)
    for _ in range(steps):
        optimizer.zero_grad()
        task(batch).backward()
        optimizer.step()


def layers(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(path).items():
        name, _, part = key.partition(".")
        found.setdefault(name, {})[part] = tensor
    return found


def convolutions(name: str) -> Iterator[str]:
    """What LoCon adds, spelt out. The tiny bases' widths double once less than the big ones': one shortcut less."""
    if name == "sdxl":
        blocks = [f"input_blocks_{n}_0" for n in (1, 2, 4, 5, 7, 8)] + ["middle_block_0", "middle_block_2"]
        blocks += [f"output_blocks_{n}_0" for n in range(9)]
        inner, shortcut = ("in_layers_2", "out_layers_3", "emb_layers_1"), "skip_connection"
        wider = ["input_blocks_4_0"] + [f"output_blocks_{n}_0" for n in range(9)]
        resized = ["input_blocks_3_0_op", "input_blocks_6_0_op", "output_blocks_2_2_conv", "output_blocks_5_2_conv"]
    else:
        blocks = [f"down_blocks_{i}_resnets_{j}" for i in range(4) for j in (0, 1)]
        blocks += ["mid_block_resnets_0", "mid_block_resnets_1"]
        blocks += [f"up_blocks_{i}_resnets_{j}" for i in range(4) for j in (0, 1, 2)]
        inner, shortcut = ("conv1", "conv2", "time_emb_proj"), "conv_shortcut"
        wider = ["down_blocks_1_resnets_0"] + [f"up_blocks_{i}_resnets_{j}" for i in range(4) for j in (0, 1, 2)]
        resized = [f"down_blocks_{i}_downsamplers_0_conv" for i in range(3)]
        resized += [f"up_blocks_{i}_upsamplers_0_conv" for i in range(3)]
    yield from (f"lora_unet_{block}_{part}" for block in blocks for part in inner)
    yield from (f"lora_unet_{block}_{shortcut}" for block in wider)
    yield from (f"lora_unet_{name}" for name in resized)


@pytest.mark.parametrize(("name", "algo", "prediction"), CASES)
def test_it_trains_exports_and_strangers_read_what_was_trained(name, algo, prediction, tmp_path) -> None:
    family, network = FAMILIES[name], NETWORKS[algo]
    trained = train(family, network, tmp_path, prediction)
    found = layers(trained.path)
    assert found.keys() == grammar(name) | set(convolutions(name) if network.convolutions else ())
    assert set().union(*found.values()) == PARTS[algo]
    assert_every_layer_learned(trained)
    assert problems(trained.path, name) == []
    predicts = {"epsilon": "epsilon", "v_prediction": "v"}[trained.pipe.scheduler.config.prediction_type]
    assert read_parts(trained.path)[1]["modelspec.prediction_type"] == predicts
    if algo in ("lora", "rslora", "locon"):
        assert_diffusers_reads(trained, base(family, prediction))
    else:
        read = with_file(base(family), trained.path, family)
        assert_same(trained.pipe, read, base(family), CLOSE, family=family)


@pytest.mark.parametrize("name", FAMILIES)
def test_baked_dora_is_a_lora_that_diffusers_reads(name, tmp_path) -> None:
    family = FAMILIES[name]
    trained = train(family, NETWORKS["dora"], tmp_path)
    whole = Exporter(**{**vars(trained.exporter), "bake": 400})  # no layer of the tiny bases has more
    trained = trained._replace(path=whole.final(2, 1.0))
    assert set().union(*layers(trained.path).values()) == PARTS["lora"]
    assert_diffusers_reads(trained, base(family))


def assert_diffusers_reads(trained: Trained, fresh: tiny.Pipeline) -> None:
    plain = base(trained.family)
    fresh.load_lora_weights(str(trained.path.parent), weight_name=trained.path.name)
    assert_same(trained.pipe, fresh, plain, CLOSE, family=trained.family)


def assert_every_layer_learned(trained: Trained) -> None:
    """None was left at its start, but the last layer of SDXL's first text encoder, of which nothing is heard."""
    still = {
        f"{component}.{path}"
        for component, module in trained.modules.items()
        for path, adapter in inject.adapters(module).items()
        if not all(weight.any() for weight in adapter.weights.values())
    }
    unheard = {f"text_encoder.encoder.layers.11.{end}" for end in (*CLIP_ATTENTION, *CLIP_MLP)}
    assert {name.replace("self_attn.", "") for name in still} == (unheard if trained.family.name == "sdxl" else set())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_presets_train_as_many_layers_as_the_grammar_has(name) -> None:
    family, pipe = FAMILIES[name], tiny.PIPELINES[name]()
    known = module_names(family, {component: getattr(pipe, component) for component in family.targets})
    for preset, counts in PRESETS[name].items():
        targets = narrow(family, preset)
        chosen = [place for place in known.values() if ends_in(place.path, targets[place.component])]
        assert tuple(sum(p.component == c for p in chosen) for c in family.targets) == counts, preset
        assert {file_key(family, place) for place in chosen} <= grammar(name)
    assert tuple(COUNTS[name].values()) == PRESETS[name]["full"]
