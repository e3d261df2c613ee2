"""Every family on its tiny base: captions and predictions as its pipeline has them, names as web UIs know them."""

import pytest
import tiny
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors.torch import load_file

from patina.clip import PLAIN
from patina.families import FAMILIES
from patina.family import FULL, ends_in
from patina.lora import file, inject, metadata
from patina.lora.blocks import sdxl_ldm
from patina.lora.names import file_key, module_names
from patina.lora.verify import verify

COUNTS = {
    "sd15": {"unet": 192, "text_encoder": 72},
    "sd2": {"unet": 192, "text_encoder": 138},
    "sdxl": {"unet": 722, "text_encoder": 72, "text_encoder_2": 192},
}
FACTS = metadata.TrainingFacts(output_name="my_style", network_dim=4, network_alpha=2.0, training_started_at=0)
HEADS = {
    ("sd15", "epsilon"): ("False", "sd_v1", "stable-diffusion-v1/lora", "diffusers"),
    ("sd15", "v_prediction"): ("False", "sd_v1_v", "stable-diffusion-v1/lora", "diffusers"),
    ("sd2", "epsilon"): ("True", "sd_v2", "stable-diffusion-v2-512/lora", "diffusers"),
    ("sd2", "v_prediction"): ("True", "sd_v2_v", "stable-diffusion-v2-768-v/lora", "diffusers"),
} | {
    ("sdxl", prediction): (
        "False",
        "sdxl_base_v1-0",
        "stable-diffusion-xl-v1-base/lora",
        "https://github.com/Stability-AI/generative-models",
    )
    for prediction in ("epsilon", "v_prediction")
}


@pytest.fixture(params=FAMILIES, scope="module")
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def live(family):
    pipe = tiny.PIPELINES[family.name]()
    return pipe, tiny.adapted(family, pipe)


@pytest.fixture(scope="module")
def exported(family, live, tmp_path_factory):
    path = tmp_path_factory.mktemp(family.name) / "my_style.safetensors"
    entries = metadata.build(FACTS, family)
    file.write(path, inject.state(live[1]), family, tiny.ALPHA, torch.float32, entries)
    return path


def grammar(name: str) -> set[str]:
    """The names of webui readers, spelt out without looking at a model."""
    if name == "sdxl":
        depth = {f"input_blocks_{n}_1": 2 for n in (4, 5)} | {f"input_blocks_{n}_1": 10 for n in (7, 8)}
        depth |= {"middle_block_1": 10} | {f"output_blocks_{n}_1": 10 if n < 3 else 2 for n in range(6)}
        texts = {"lora_te1": 12, "lora_te2": 32}
    else:
        places = [f"down_blocks_{i}_attentions_{j}" for i in (0, 1, 2) for j in (0, 1)] + ["mid_block_attentions_0"]
        places += [f"up_blocks_{i}_attentions_{j}" for i in (1, 2, 3) for j in (0, 1, 2)]
        depth = dict.fromkeys(places, 1)
        texts = {"lora_te": 12 if name == "sd15" else 23}
    inner = [f"attn{n}_to_{which}" for n in (1, 2) for which in ("q", "k", "v", "out_0")] + [
        "ff_net_0_proj",
        "ff_net_2",
    ]
    names = {f"lora_unet_{place}_proj_{end}" for place in depth for end in ("in", "out")}
    names |= {
        f"lora_unet_{place}_transformer_blocks_{t}_{part}"
        for place in depth
        for t in range(depth[place])
        for part in inner
    }
    parts = [f"self_attn_{which}_proj" for which in "qkv"] + ["self_attn_out_proj", "mlp_fc1", "mlp_fc2"]
    return names | {
        f"{te}_text_model_encoder_layers_{n}_{part}"
        for te, layers in texts.items()
        for n in range(layers)
        for part in parts
    }


def test_the_layers_have_the_names_that_web_uis_know(family, live, exported):
    layers = set(file.read(exported).layers)
    known = module_names(family, live[1])
    places = {key: at for key, at in known.items() if ends_in(at.path, family.targets[at.component][FULL])}
    assert layers == grammar(family.name) == set(places)
    assert {place.component for name, place in known.items() if name not in places} == {"unet"}  # the convolutions
    counted = {name: sum(place.component == name for place in places.values()) for name in family.targets}
    assert counted == COUNTS[family.name]
    assert all(file_key(family, place) == name for name, place in places.items())


def test_the_file_holds_what_was_trained(family, live, exported):
    verify(exported, live[1], family, tiny.ALPHA, torch.float32)


def test_only_sd15_has_convolutions_for_projections(family, exported):
    dimensions = {tensor.ndim for key, tensor in load_file(exported).items() if "proj_in.lora" in key}
    assert dimensions == ({4} if family.name == "sd15" else {2})


def test_diffusers_reads_the_file_as_what_was_trained(family, live, exported):
    fresh = tiny.PIPELINES[family.name]()
    plain = tiny.outputs(family, fresh)
    fresh.load_lora_weights(str(exported.parent), weight_name=exported.name)
    for trained, read, before in zip(tiny.outputs(family, live[0]), tiny.outputs(family, fresh), plain, strict=True):
        torch.testing.assert_close(read, trained, rtol=1e-5, atol=1e-5)
        assert (trained - before).abs().max() > 0.01  # else the line above shows nothing


def test_the_conditions_are_the_pipelines_own(family):
    pipe = tiny.PIPELINES[family.name]()
    captions = [*tiny.CAPTIONS, "long " * 100]
    with torch.no_grad():
        theirs = pipe.encode_prompt(captions, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
        ours = family.encode(pipe, captions, PLAIN)
    assert torch.equal(ours["text"], theirs[0])
    assert ("pooled" in ours) == (family.name == "sdxl")
    if "pooled" in ours:
        assert torch.equal(ours["pooled"], theirs[2])


@pytest.mark.parametrize(("name", "prediction"), HEADS)
def test_the_header_says_which_base_it_is_for(name, prediction):
    entries = metadata.build(FACTS, FAMILIES[name], metadata.Modelspec(prediction_type=prediction))
    keys = ("ss_v2", "ss_base_model_version", "modelspec.architecture", "modelspec.implementation")
    assert tuple(entries[key] for key in keys) == HEADS[name, prediction]
    assert entries["modelspec.prediction_type"] == ("epsilon" if prediction == "epsilon" else "v")


def test_sdxl_predicts_as_its_pipeline_draws():
    """One step of the pipeline, whose noise prediction a callback cannot show, is one step with ours."""
    pipe, family = tiny.sdxl(), FAMILIES["sdxl"]
    pipe.set_progress_bar_config(disable=True)
    start = torch.randn(1, 4, 8, 16, generator=torch.Generator().manual_seed(3))
    size = {"height": 64, "width": 128}
    drawn = pipe("a cat", latents=start, num_inference_steps=1, guidance_scale=1, output_type="latent", **size).images
    t = pipe.scheduler.timesteps[0]
    with torch.no_grad():
        predicted = family.predict(pipe, start, t[None], family.encode(pipe, ["a cat"], PLAIN))
    torch.testing.assert_close(pipe.scheduler.step(predicted, t, start).prev_sample, drawn)


def test_sdxl_is_told_size_and_crop():
    pipe, family = tiny.sdxl(), FAMILIES["sdxl"]
    cond = family.encode(pipe, ["a cat"], PLAIN)
    x, t = torch.randn(1, 4, 8, 16, generator=torch.Generator().manual_seed(3)), torch.tensor([500])
    with torch.no_grad():
        plain = family.predict(pipe, x, t, cond)
        same = family.predict(pipe, x, t, cond | {"time_ids": torch.tensor([[64, 128, 0, 0, 64, 128]])})
        cut = family.predict(pipe, x, t, cond | {"time_ids": torch.tensor([[512, 128, 9, 0, 64, 128]])})
    assert torch.equal(plain, same)
    assert not torch.allclose(plain, cut)


def test_the_stability_names_are_diffusers_own():
    """Convolutions and embeddings too: each layer's weight under our name is found again by diffusers' converter."""
    unet = tiny.sdxl().unet
    ours = {
        f"model.diffusion_model.{sdxl_ldm(path)}.weight": layer.weight for path, layer in inject.layers(unet).items()
    }
    ours |= {key.replace(".weight", ".bias"): torch.zeros(1) for key in ours}  # the converter wants pairs
    found = convert_ldm_unet_checkpoint(ours, unet.config)
    for path, layer in inject.layers(unet).items():
        assert found[f"{path}.weight"] is layer.weight, path
