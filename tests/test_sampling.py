"""A picture depends on its prompt, its seed and the weights, and drawing it leaves nothing behind."""

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import save_file

from patina.clip import PLAIN, Reading
from patina.errors import PatinaError
from patina.families.sd15 import SD15
from patina.lora import file, inject
from patina.sampling import draw_grid, generate, native_size

PROMPTS = ["a red house", "two fish, oil painting", "a cat"]
DRAWING = {"size": (64, 48), "steps": 3, "guidance": 4.0}


@pytest.fixture(scope="module")
def pipe():
    return tiny.sd15()


@pytest.fixture(scope="module")
def lora(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("lora") / "my_style.safetensors"
    modules = tiny.adapted(SD15, tiny.sd15())
    file.write(path, inject.state(modules), SD15, tiny.ALPHA, torch.float32, {})
    return path


def apart(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of two pixels, of 255."""
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


def test_a_picture_is_the_same_alone_and_in_any_batch(pipe):
    together = generate(pipe, PROMPTS, [7, 8, 9], batch=4, **DRAWING)
    split = generate(pipe, PROMPTS, [7, 8, 9], batch=2, **DRAWING)
    alone = generate(pipe, PROMPTS[1:2], [8], **DRAWING)
    assert [picture.size for picture in together] == [(64, 48)] * 3
    assert max(map(apart, together, split)) <= 1  # sums in another order
    assert apart(together[1], alone[0]) <= 1
    assert apart(alone[0], generate(pipe, PROMPTS[1:2], [9], **DRAWING)[0]) > 20


def test_it_is_what_diffusers_draws(pipe):
    """Against the pipeline's own call, from a copy with the same weights."""
    theirs = tiny.sd15()
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(
        PROMPTS[0],
        negative_prompt="blurry",
        num_inference_steps=3,
        guidance_scale=4.0,
        width=64,
        height=48,
        generator=torch.Generator().manual_seed(7),
    ).images[0]
    assert apart(generate(pipe, PROMPTS[:1], [7], negative_prompt="blurry", **DRAWING)[0], expected) <= 1
    assert apart(generate(pipe, PROMPTS[:1], [7], **DRAWING)[0], expected) > 1


def reader(pipe, reading: Reading):
    return lambda prompts: SD15.encode(pipe, prompts, reading)


def test_prompts_are_read_as_captions_are(pipe):
    """Against the pipeline's own reading; where it has none that is the same, against pictures of other readings."""
    long = "a red house, " * 18 + "two fish " * 30  # 72 tokens, and what is beyond them
    plain, negative = reader(pipe, PLAIN), {**DRAWING, "negative_prompt": "blurry"}
    for prompts in (PROMPTS[:2], [long]):
        expected = generate(pipe, prompts, [7, 8], **negative)
        assert max(map(apart, generate(pipe, prompts, [7, 8], encode=plain, **negative), expected)) <= 1
    whole = generate(pipe, [long], [7], encode=reader(pipe, Reading(max_tokens=150)), **negative)[0]
    assert apart(whole, expected[0]) > 1


def test_clip_skip_is_that_of_diffusers_counted_from_one(pipe):
    theirs = tiny.sd15()
    states = theirs.text_encoder(
        theirs.tokenizer(PROMPTS[:1], padding="max_length", return_tensors="pt").input_ids, output_hidden_states=True
    ).hidden_states[-2]
    told = generate(pipe, PROMPTS[:1], [7], encode=reader(pipe, Reading(2)), **DRAWING | {"guidance": 1.0})[0]
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(
        prompt_embeds=theirs.text_encoder.final_layer_norm(states),
        num_inference_steps=3,
        guidance_scale=1.0,
        width=64,
        height=48,
        generator=torch.Generator().manual_seed(7),
    ).images[0]
    assert apart(told, expected) <= 1
    assert apart(generate(pipe, PROMPTS[:1], [7], **DRAWING | {"guidance": 1.0})[0], expected) > 1


def test_nothing_is_left_behind(capfd):
    pipe = tiny.sd15()
    pipe.unet.train()
    pipe.unet.mid_block.eval()
    pipe.scheduler.set_timesteps(7)
    modes = {name: module.training for name, module in pipe.unet.named_modules()}
    scheduler, timesteps, noise = pipe.scheduler, pipe.scheduler.timesteps.clone(), torch.get_rng_state()
    generate(pipe, PROMPTS, [1, 2, 3], **DRAWING)
    assert {name: module.training for name, module in pipe.unet.named_modules()} == modes
    assert pipe.scheduler is scheduler
    assert torch.equal(pipe.scheduler.timesteps, timesteps)
    assert torch.equal(torch.get_rng_state(), noise)
    assert capfd.readouterr() == ("", "")


def test_drawing_is_without_dropout_although_the_model_trains():
    pipe = tiny.sd15()
    pipe.text_encoder.config.attention_dropout = 0.5
    for module in pipe.text_encoder.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.5
    expected = generate(pipe, PROMPTS[:1], [7], **DRAWING)[0]
    pipe.text_encoder.train()
    assert apart(generate(pipe, PROMPTS[:1], [7], **DRAWING)[0], expected) == 0


def test_modes_come_back_after_an_error():
    pipe = tiny.sd15()
    pipe.unet.train()
    with pytest.raises(ValueError, match="divisible by 8"):
        generate(pipe, PROMPTS[:1], [0], size=(60, 60), steps=1)
    assert pipe.unet.training


def test_half_precision_draws_about_the_same(pipe):
    exact = generate(pipe, PROMPTS[:1], [7], **DRAWING)[0]
    rough = generate(pipe, PROMPTS[:1], [7], dtype=torch.bfloat16, **DRAWING)[0]
    assert 0 < apart(exact, rough) < 60
    assert pipe.unet.dtype == torch.float32


def test_a_half_precision_base_with_a_live_lora_is_drawn():
    """As a run on a GPU has them: frozen weights in half precision, the LoRA and the autoencoder in fp32."""
    pipe = tiny.sd15()
    tiny.adapted(SD15, pipe)
    exact = generate(pipe, PROMPTS[:1], [7], **DRAWING)[0]
    for module in (pipe.unet, pipe.text_encoder):
        for name, weight in module.named_parameters():
            weight.data = weight.data if "lora_" in name else weight.data.bfloat16()
    rough = generate(pipe, PROMPTS[:1], [7], dtype=torch.bfloat16, **DRAWING)[0]
    assert 0 < apart(exact, rough) < 60


def test_numbers_that_are_not_finite_come_out_black():
    pipe = tiny.sd15()
    pipe.unet.conv_out.bias.data.fill_(torch.nan)
    assert generate(pipe, PROMPTS[:1], [7], **DRAWING)[0].getextrema() == ((0, 0),) * 3


def test_the_size_is_the_models_own_if_none_is_given(pipe):
    assert native_size(pipe) == (512, 512)


def test_a_grid_shows_the_base_and_the_lora_at_each_strength(pipe, lora):
    live = tiny.sd15()
    base = generate(live, PROMPTS, [5, 6, 7], **DRAWING)
    tiny.adapted(SD15, live)
    full = generate(live, PROMPTS, [5, 6, 7], **DRAWING)
    rows = draw_grid(pipe, lora, [0.5, 0, 1], PROMPTS, seed=5, **DRAWING)
    assert max(map(apart, rows[1], base)) == 0
    assert max(map(apart, rows[2], full)) <= 1
    assert all(apart(half, one) > 5 for half, one in zip(rows[0] * 2, base + full, strict=True))


def test_a_grid_leaves_the_base_as_it_was(pipe, lora):
    before = generate(pipe, PROMPTS[:1], [5], **DRAWING)[0]
    draw_grid(pipe, lora, [1], PROMPTS[:1], **DRAWING)
    assert not inject.adapters(pipe.unet)
    assert not inject.adapters(pipe.text_encoder)
    assert apart(generate(pipe, PROMPTS[:1], [5], **DRAWING)[0], before) == 0
    assert len(draw_grid(pipe, None, [0], PROMPTS[:2], **DRAWING)[0]) == 2


def test_a_lora_without_a_text_encoder_is_drawn_in_silence(pipe, tmp_path, capfd):
    modules = tiny.adapted(SD15, tiny.sd15(), components=("unet",))
    path = tmp_path / "unet.safetensors"
    file.write(path, inject.state(modules), SD15, tiny.ALPHA, torch.float32, {})
    one, base = draw_grid(pipe, path, [1, 0], PROMPTS[:1], **DRAWING)
    assert apart(one[0], base[0]) > 5
    assert capfd.readouterr() == ("", "")


def test_a_file_that_does_not_fit_is_refused_with_its_name(pipe, tmp_path, caplog):
    path = tmp_path / "bad.safetensors"
    with pytest.raises(PatinaError, match=r"bad\.safetensors: no such file"):
        draw_grid(pipe, path, [1], PROMPTS, **DRAWING)
    path.write_bytes(b"not a LoRA")
    with pytest.raises(PatinaError, match="cannot put it on this base"):
        draw_grid(pipe, path, [1], PROMPTS, **DRAWING)
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    wide = {f"{name}.lora_down.weight": torch.ones(4, 320), f"{name}.lora_up.weight": torch.ones(320, 4)}
    save_file({**wide, f"{name}.alpha": torch.tensor(4.0)}, path)  # of a full-sized SD1.5
    with pytest.raises(PatinaError, match="cannot put it on this base"):
        draw_grid(pipe, path, [1], PROMPTS, **DRAWING)
    assert not caplog.records  # the sentence is enough
    assert not inject.adapters(pipe.unet)
    assert len(draw_grid(pipe, None, [0], PROMPTS[:1], **DRAWING)) == 1


def test_a_file_of_which_nothing_fits_is_refused(pipe, tmp_path):
    """diffusers itself only warns, and would draw the base."""
    path = tmp_path / "other.safetensors"
    save_file({"lora_transformer.x.lora_A.weight": torch.ones(4, 4)}, path)
    with pytest.raises(PatinaError, match="nothing in it fits"):
        draw_grid(pipe, path, [1], PROMPTS, **DRAWING)
