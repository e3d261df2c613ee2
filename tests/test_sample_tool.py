"""tools/sample.py draws what was asked for, and says in a sentence what it cannot draw."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image
from test_sampling import apart

from patina.errors import PatinaError
from patina.families.sd15 import SD15
from patina.lora import file, inject

TOOL = Path(__file__).parents[1] / "tools" / "sample.py"
QUICK = ["--device", "cpu", "--steps", "2", "--size", "64x48"]


def load_tool():
    spec = importlib.util.spec_from_file_location("sample", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


sample = load_tool()


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with a base, two LoRAs and a list of prompts."""
    folder = tmp_path_factory.mktemp("world")
    tiny.save_sd15(folder / "base")
    modules = tiny.adapted_sd15(tiny.sd15())
    for name, alpha in (("one", tiny.ALPHA), ("two", 4.0)):
        file.write(folder / f"{name}.safetensors", inject.state(modules), SD15, alpha, torch.float32, {})
    (folder / "prompts.txt").write_text("a cat\n\n  two fish \n", encoding="utf-8")
    return folder


def test_rows_of_strengths_and_columns_of_prompts(world, tmp_path, capsys):
    loras = [str(world / "one.safetensors"), str(world / "two.safetensors")]
    asked = ["--base", str(world / "base"), "--lora", *loras, "--strength", "0", "0.5", "1", "--prompt", "a red house"]
    places = ["--prompts", str(world / "prompts.txt"), "--output", str(tmp_path / "a.png"), "--folder"]
    assert sample([*asked, *places, str(tmp_path / "single"), *QUICK]) == 0
    rows = ["01_base", "02_one_strength_0.5", "03_one_strength_1", "04_two_strength_0.5", "05_two_strength_1"]
    singles = {path.stem: Image.open(path).convert("RGB") for path in (tmp_path / "single").iterdir()}
    assert sorted(singles) == [f"{row}_{number:02d}" for row in rows for number in (1, 2, 3)]
    assert singles["01_base_01"].size == (64, 48)
    assert apart(singles["01_base_03"], singles["03_one_strength_1_03"]) > 5
    assert apart(singles["03_one_strength_1_03"], singles["04_two_strength_0.5_03"]) <= 1  # twice the alpha
    out = capsys.readouterr().out
    assert "3 prompts x base, one strength 0.5, one strength 1, two strength 0.5, two strength 1" in out
    assert "15 pictures" in out
    upright = Image.open(tmp_path / "a.png").convert("RGB")
    assert sample([*asked, *places[:-1], "--layout", "columns", *QUICK]) == 0
    lying = Image.open(tmp_path / "a.png").convert("RGB")
    assert lying.width - upright.width > 64 > lying.height - upright.height


def test_the_base_alone(world, tmp_path):
    command = ["--base", str(world / "base"), "--prompt", "a cat", "--output", str(tmp_path / "new" / "a.png")]
    assert sample([*command, *QUICK]) == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--prompt", "x", "--base", "nowhere"], "nowhere: there is no such file or folder"),
        (["--prompt", "x", "--lora", "gone.safetensors"], "gone.safetensors: no such file"),
        (["--prompt", "x", "--strength", "0", "1"], "--lora FILE"),
        (["--prompts", "gone.txt"], "gone.txt: no such file"),
        ([], "no prompts"),
    ],
)
def test_what_is_missing_is_named(world, tmp_path, changed, said):
    with pytest.raises(PatinaError, match=said):
        sample(["--base", str(world / "base"), "--output", str(tmp_path / "a.png"), *QUICK, *changed])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [["--size", "65x64"], ["--size", "64"], ["--steps", "0"], ["--strength", "nan"]])
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
