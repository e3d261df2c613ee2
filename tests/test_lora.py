"""Putting LoRA on the tiny SD1.5: which layers, from which start, and that the base stays as it was."""

import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline

from patina.clip import PLAIN
from patina.errors import PatinaError
from patina.families import FAMILIES
from patina.family import narrow
from patina.lora import inject

SD15 = FAMILIES["sd15"]
RANK, ALPHA = tiny.RANK, tiny.ALPHA
QKVO = ("q_proj", "k_proj", "v_proj", "out_proj")


def test_the_base_stays_as_it_was():
    pipe, fresh = tiny.sd15(), tiny.sd15()
    before = torch.get_rng_state()
    paths = inject.adapt(pipe.unet, narrow(SD15, "attn")["unet"], RANK, ALPHA, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(paths) == 128
    now = {key.replace(".base_layer", ""): weight for key, weight in pipe.unet.state_dict().items()}
    for key, weight in fresh.unet.state_dict().items():
        assert torch.equal(now[key], weight), key
    trained = {name.split(".")[-3] for name, weight in pipe.unet.named_parameters() if weight.requires_grad}
    assert trained == {"lora_A", "lora_B"}
    assert not any(module.training for module in pipe.unet.modules())
    assert torch.equal(tiny.outputs(SD15, pipe)[1], tiny.outputs(SD15, fresh)[1])  # B is zero


def test_the_start_is_a_function_of_seed_and_path():
    first, narrower, other = (tiny.sd15(seed=seed).text_encoder for seed in (0, 9, 0))
    narrower.bfloat16()
    inject.adapt(first, QKVO, RANK, ALPHA, seed=0)
    paths = inject.adapt(narrower, ["v_proj"], RANK, ALPHA, seed=0)
    inject.adapt(other, QKVO, RANK, ALPHA, seed=1)
    for path in paths:
        one, same, else_ = (inject.adapters(module)[path] for module in (first, narrower, other))
        assert same.A.dtype == same.B.dtype == torch.float32
        assert torch.equal(one.A, same.A)
        assert not torch.equal(one.A, else_.A)
        assert not one.B.any()
        assert one.A.abs().max() <= 32**-0.5  # Kaiming-uniform with a = sqrt(5): 1 / sqrt(inputs)
    assert one.scale == ALPHA / RANK
    assert narrower(torch.tensor([[49406, 320, 49407]])).last_hidden_state.dtype == torch.bfloat16


def test_the_state_goes_back_bit_for_bit():
    pipe = tiny.sd15()
    modules = tiny.adapted(SD15, pipe)
    saved = {key: torch.randn_like(weight) for key, weight in inject.state(modules).items()}
    assert len(saved) == 2 * 264
    assert "unet.mid_block.attentions.0.proj_in.lora_A" in saved
    inject.load_state(modules, saved)
    assert all(torch.equal(weight, saved[key]) for key, weight in inject.state(modules).items())
    key, weight = saved.popitem()
    with pytest.raises(PatinaError, match=key):
        inject.load_state(modules, saved)
    with pytest.raises(PatinaError, match=key):
        inject.load_state(modules, saved | {key: weight[:1]})


def test_a_target_that_names_nothing_is_told_the_nearest():
    pipe = tiny.sd15()
    with pytest.raises(
        PatinaError, match=r"'to_out' names no layer of this UNet2DConditionModel; nearest: .*to_out\.0"
    ):
        inject.adapt(pipe.unet, ["to_q", "to_out"], RANK, ALPHA, seed=0)
    with pytest.raises(PatinaError, match=r"has no layer 'q_prj' .* nearest: q_proj"):
        narrow(SD15, ["to_q", "q_prj"])
    with pytest.raises(PatinaError, match=r"no preset 'atn' .* attn, attn-mlp, full"):
        narrow(SD15, "atn")


def test_the_choice_of_targets_narrows_them():
    counts = {}
    for choice in ("attn", "attn-mlp", ("attn2.to_k",)):
        pipe, targets = tiny.sd15(), narrow(SD15, choice)
        counts[choice] = [len(inject.adapt(getattr(pipe, c), ends, 1, 1, seed=0)) for c, ends in targets.items()]
    assert counts == {"attn": [128, 48], "attn-mlp": [160, 72], ("attn2.to_k",): [16]}
    assert narrow(SD15, ["to_q", "q_proj"]) == {"unet": ("to_q",), "text_encoder": ("q_proj",)}


def test_captions_are_encoded_as_the_pipeline_does_and_with_gradients():
    fresh, pipe = tiny.sd15(), tiny.sd15()
    modules = tiny.adapted(SD15, pipe)
    captions = [*tiny.CAPTIONS, "long " * 100]
    with torch.no_grad():
        theirs, _ = fresh.encode_prompt(captions, "cpu", 1, False)
    torch.testing.assert_close(SD15.encode(fresh, captions, PLAIN)["text"], theirs)
    assert theirs.shape == (3, 77, tiny.WIDTH)
    SD15.encode(pipe, captions, PLAIN)["text"].sum().backward()
    adapter = inject.adapters(modules["text_encoder"])["encoder.layers.0.self_attn.q_proj"]
    assert adapter.A.grad is not None
    assert adapter.A.grad.any()


def test_a_saved_pipeline_is_the_same_pipeline(tmp_path):
    again = StableDiffusionPipeline.from_pretrained(tiny.save_sd15(tmp_path))
    for loaded, built in zip(tiny.outputs(SD15, again), tiny.outputs(SD15, tiny.sd15()), strict=True):
        assert torch.equal(loaded, built)
