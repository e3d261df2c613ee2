"""tools/sample.py draws what was asked for, and says in a sentence what it cannot draw."""

import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image
from test_sampling import apart
from toolbox import load_tool

from patina.errors import PatinaError
from patina.families.sd15 import SD15
from patina.lora import file, inject

TOOL = Path(__file__).parents[1] / "tools" / "sample.py"
QUICK = ["--device", "cpu", "--steps", "2", "--size", "64x48"]


sample = load_tool("sample").main


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with a base, two LoRAs and a list of prompts."""
    folder = tmp_path_factory.mktemp("world")
    tiny.save_sd15(folder / "base")
    modules = tiny.adapted(SD15, tiny.sd15())
    for name, alpha in (("one", tiny.ALPHA), ("two", 4.0)):
        file.write(folder / f"{name}.safetensors", inject.state(modules), SD15, alpha, torch.float32, {})
    (folder / "prompts.txt").write_text("a cat\n\n  two fish \n", encoding="utf-8")
    return folder


def drawn(folder: Path) -> dict[str, Image.Image]:
    return {path.stem: Image.open(path).convert("RGB") for path in folder.iterdir()}


def test_rows_of_weights_and_columns_of_prompts(world, tmp_path, capsys):
    asked = ["--base", str(world / "base"), "--lora", str(world / "one.safetensors"), "--prompt", "a red house"]
    places = ["--prompts", str(world / "prompts.txt"), "--out", str(tmp_path / "a.png"), "--folder"]
    grid = ["--grid", "weight=0,0.5,1"]
    assert sample([*asked, *places, str(tmp_path / "single"), *grid, *QUICK]) == 0
    rows = ["01_base", "02_weight_0.5", "03_weight_1"]
    singles = drawn(tmp_path / "single")
    assert sorted(singles) == [f"{row}_{number:02d}" for row in rows for number in (1, 2, 3)]
    assert singles["01_base_01"].size == (64, 48)
    assert apart(singles["01_base_03"], singles["03_weight_1_03"]) > 5
    out = capsys.readouterr().out
    assert "base | weight 0.5 | weight 1, 3 pictures each" in out
    assert "9 pictures" in out
    upright = Image.open(tmp_path / "a.png").convert("RGB")
    assert sample([*asked, *places[:-1], "--grid", "prompt", "x", "weight=0,1", *QUICK]) == 0
    lying = Image.open(tmp_path / "a.png").convert("RGB")
    assert upright.width > lying.width


def test_stacked_loras_add_up_in_any_order(world, tmp_path):
    """`two` has twice `one`'s alpha and its weights: 0.5 of one and 0.25 of two are one at 1."""
    one, two = str(world / "one.safetensors"), str(world / "two.safetensors")
    stacks = {
        "sum": [f"{one}:0.5", f"{two}:0.25"],
        "turned": [f"{two}:0.25", f"{one}:0.5"],
        "whole": [one],
        "none": [f"{one}:0", f"{two}:0"],
    }
    found = {}
    for name, files in stacks.items():
        loras = [word for file_ in files for word in ("--lora", file_)]
        command = ["--base", str(world / "base"), *loras, "--prompt", "a cat", "--output", str(tmp_path / "a.png")]
        assert sample([*command, "--grid", "weight=0,1", "--folder", str(tmp_path / name), *QUICK]) == 0
        found[name] = drawn(tmp_path / name)
    assert apart(found["sum"]["02_weight_1_01"], found["whole"]["02_weight_1_01"]) <= 1
    assert apart(found["sum"]["02_weight_1_01"], found["turned"]["02_weight_1_01"]) <= 1
    assert apart(found["none"]["02_weight_1_01"], found["none"]["01_base_01"]) == 0
    assert apart(found["none"]["01_base_01"], found["sum"]["01_base_01"]) == 0
    assert apart(found["sum"]["02_weight_1_01"], found["sum"]["01_base_01"]) > 5


def test_a_file_for_the_unet_alone_stacks_with_one_for_both(world, tmp_path):
    pipe = tiny.sd15()
    state = inject.state(tiny.adapted(SD15, pipe, components=("unet",)))
    file.write(tmp_path / "unet.safetensors", state, SD15, tiny.ALPHA, torch.float32, {})
    loras = ["--lora", str(tmp_path / "unet.safetensors"), f"{world / 'one.safetensors'}:0.00001"]
    command = ["--base", str(world / "base"), "--prompt", "a cat", "--output", str(tmp_path / "a.png"), *QUICK]
    sample([*command, *loras, "--folder", str(tmp_path / "both"), "--grid", "weight=1"])
    sample([*command, *loras[:2], "--folder", str(tmp_path / "alone"), "--grid", "weight=1"])
    both, alone = drawn(tmp_path / "both"), drawn(tmp_path / "alone")
    assert apart(both["01_weight_1_01"], alone["01_weight_1_01"]) <= 1


def test_prompts_in_the_webuis_notation(world, tmp_path):
    """A prompt's tags and options give what the command's own options give."""
    text = "# a comment\na cat <lora:one:0.5> --s 3 --l 4 --d 9 --w 48 --h 64 --n blurry\na cat --d 9\n"
    (tmp_path / "p.txt").write_text(text, encoding="utf-8")
    command = ["--base", str(world / "base"), "--output", str(tmp_path / "a.png"), *QUICK]
    lines = ["--prompts", str(tmp_path / "p.txt"), "--lora-dir", str(world), "--grid", "prompt"]
    sample([*command, *lines, "--folder", str(tmp_path / "lines")])
    options = ["--steps", "3", "--guidance", "4", "--seed", "9", "--size", "48x64", "--negative", "blurry"]
    lora = ["--lora", f"{world / 'one.safetensors'}:0.5", "--grid", "weight=1"]
    sample([*command, "--prompt", "a cat", *lora, *options, "--folder", str(tmp_path / "options")])
    sample([*command, "--prompt", "a cat", "--seed", "9", "--folder", str(tmp_path / "base")])
    found, same = drawn(tmp_path / "lines"), drawn(tmp_path / "options")["01_weight_1_01"]
    assert found["01_weight_1_01"].size == (48, 64)
    assert apart(found["01_weight_1_01"], same) <= 1
    assert apart(found["01_weight_1_02"], drawn(tmp_path / "base")["01_base_01"]) <= 1  # no tag: no LoRA


def test_two_axes_of_numbers(world, tmp_path):
    command = ["--base", str(world / "base"), "--prompt", "a cat", "--output", str(tmp_path / "a.png"), *QUICK]
    sample([*command, "--grid", "guidance=1,5", "x", "seed", "--seed", "3", "--folder", str(tmp_path / "grid")])
    found = drawn(tmp_path / "grid")
    assert sorted(found) == [f"{row}_{n:02d}" for row in ("01_guidance_1", "02_guidance_5") for n in (1, 2, 3, 4)]
    sample([*command, "--guidance", "5", "--seed", "5", "--folder", str(tmp_path / "one")])
    assert apart(found["02_guidance_5_03"], drawn(tmp_path / "one")["01_base_01"]) <= 1


def test_the_base_alone(world, tmp_path):
    command = ["--base", str(world / "base"), "--prompt", "a cat", "--output", str(tmp_path / "new" / "a.png")]
    assert sample([*command, *QUICK]) == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--prompt", "x", "--base", "nowhere"], "nowhere: there is no such file or folder"),
        (["--prompt", "x", "--lora", "gone.safetensors"], "gone.safetensors: no such file"),
        (["--prompt", "x", "--grid", "weight=0,1"], "--lora FILE"),
        (["--prompt", "x", "--grid", "wieght=0,1"], "not an axis"),
        (["--prompt", "x", "--grid", "seed=1,two"], "not an axis"),
        (["--prompt", "x", "--grid", "seed=1", "x", "seed=2"], "two different axes"),
        (["--prompt", "x", "--prompt", "y", "--grid", "seed=1", "x", "steps=2"], "make prompt one of the axes"),
        (["--prompt", "a <lora:gone:1>"], "<lora:gone>: there is no such file"),
        (["--prompt", "a <lora:../one:1>", "--lora-dir", "."], "there is no such file"),
        (["--prompt", "a <lora:one:much>"], "'much' is no weight"),
        (["--prompt", "a --q 3"], "no option --q"),
        (["--prompt", "a --w 65"], "--w '65' is not a value"),
        (["--prompts", "gone.txt"], "gone.txt: no such file"),
        ([], "no prompts"),
    ],
)
def test_what_is_missing_is_named(world, tmp_path, changed, said):
    with pytest.raises(PatinaError, match=said):
        sample(["--base", str(world / "base"), "--output", str(tmp_path / "a.png"), *QUICK, *changed])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [["--size", "65x64"], ["--size", "64"], ["--steps", "0"], ["--lora", "a:nan"]])
def test_a_wrong_command_line_is_refused(wrong, capsys):
    with pytest.raises(SystemExit) as left:
        sample(["--base", "b", "--output", "a.png", "--prompt", "x", *wrong])
    assert left.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_the_command_ends_with_one_sentence_before_torch_is_imported():
    command = [sys.executable, "-X", "importtime", str(TOOL), "--base", "b", "--output", "a.png"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    told = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == 2
    assert told == ['no prompts; write --prompt "a red house", or --prompts FILE.txt with one a line']
    assert "torch" not in done.stderr
