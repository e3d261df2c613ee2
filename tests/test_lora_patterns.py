"""Patterns over blocks and paths: what each fits."""

import pytest

from patina.lora.patterns import block, number_at, parse


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("conv_in", "IN00"),
        ("down_blocks.0.attentions.0.proj_in", "IN01"),
        ("down_blocks.0.resnets.1.conv1", "IN02"),
        ("down_blocks.0.downsamplers.0.conv", "IN03"),
        ("down_blocks.1.attentions.0.proj_in", "IN04"),
        ("down_blocks.2.attentions.1.transformer_blocks.9.ff.net.2", "IN08"),
        ("down_blocks.3.resnets.1.conv2", "IN11"),
        ("mid_block.attentions.0.proj_in", "MID"),
        ("up_blocks.0.resnets.0.conv1", "OUT00"),
        ("up_blocks.0.upsamplers.0.conv", "OUT02"),
        ("up_blocks.1.attentions.2.proj_out", "OUT05"),
        ("up_blocks.3.attentions.2.proj_out", "OUT11"),
        ("encoder.layers.3.self_attn.q_proj", "BASE"),
    ],
)
def test_blocks_are_numbered_as_in_the_original_layout(path, name):
    assert block(path) == name


def test_the_first_pattern_that_fits_counts_whole_blocks_or_parts_of_paths():
    patterns = parse([r"IN0[1-3]=4", r"attn2=1e1", "OUT=7", r"^text_encoder\.=0.5"])
    assert number_at(patterns, "unet", "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q") == 4
    assert number_at(patterns, "unet", "mid_block.attentions.0.transformer_blocks.0.attn2.to_q") == 10
    assert number_at(patterns, "unet", "up_blocks.3.attentions.2.proj_out") is None  # OUT is no whole block's name
    assert number_at(patterns, "text_encoder", "encoder.layers.3.self_attn.q_proj") == 0.5
