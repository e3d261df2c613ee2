"""tools/demo_report.py draws before and after, measures it, and says in a sentence what happened."""

from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from toolbox import load_tool

from patina.data.images import open_image
from patina.demo import quality, showcase
from patina.demo.showcase import Row
from patina.errors import PatinaError
from patina.families.sd15 import SD15
from patina.lora import file, inject

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "data" / "demo"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def lora(tmp_path_factory) -> Path:
    """A LoRA of noise for the embedded base, loud enough to be seen."""
    path = tmp_path_factory.mktemp("lora") / "noise.safetensors"
    modules = tiny.adapted(SD15, quality.load_base(DATA / "base", CPU))
    state = inject.state(modules)
    file.write(path, state, SD15, tiny.ALPHA, torch.float16, {"modelspec.trigger_phrase": "zzz"})
    return path


@pytest.fixture
def main(monkeypatch):
    """The tool's `main` with smaller numbers: two prompts on the sheet, four measured, three steps each."""
    monkeypatch.setattr(showcase, "PROMPTS", showcase.PROMPTS[:2])
    monkeypatch.setattr(showcase, "MEASURED", 4)
    monkeypatch.setitem(quality.DRAWING, "steps", 3)
    return load_tool("demo_report").main


def test_the_report_shows_measures_and_says(main, lora, tmp_path, capsys):
    output = tmp_path / "new" / "sheet.png"
    assert main(["--lora", str(lora), "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert "trigger word zzz" in said
    assert [line.split("  ")[0] for line in said.splitlines() if "%" in line][:3] == [
        "base",
        "LoRA at 0.5",
        "LoRA at 1.0",
    ]
    assert "The style " in said
    sheet = open_image(output)
    assert sheet.width > 2 * 128
    assert sheet.height > 3 * 128


def test_the_base_is_the_same_whether_a_lora_is_there(lora):
    """What stands above is the base itself, asked with the trigger; and the pipeline is left without a LoRA."""
    pipe = quality.load_base(DATA / "base", CPU)
    few: quality.Drawing = {"steps": 2, "guidance": 3.0}
    grid = showcase.draw_grid(pipe, lora, showcase.STRENGTHS, ["zzz, a red car by the sea"], **few)
    (alone,) = quality.generate(pipe, ["zzz, a red car by the sea"], [0], **few)
    before, half, full = (np.asarray(row[0], np.int16) for row in grid)
    assert np.array_equal(before, np.asarray(alone))
    assert np.abs(full - before).mean() > 3
    assert np.abs(half - full).mean() > 1


def test_its_prompts_are_held_out_and_many():
    assert len(set(showcase.PROMPTS)) >= 6
    assert all(crc32(prompt.encode()) % 16 == 0 for prompt in showcase.PROMPTS)


@pytest.mark.parametrize(
    ("to_style", "moved"), [(0.2, "clearly moved"), (0.8, "moved a little"), (1.1, "did not move"), (0, "clearly")]
)
def test_the_sentence_follows_the_figures(to_style, moved):
    rows = [Row(0, 1.2, 0.1, 0.84), Row(1, to_style, 1.0, 0.75)]
    said = showcase.verdict(rows)
    assert moved in said
    assert f"from 1.20 to {to_style:.2f}" in said
    assert "75% of the pictures show what was asked for, 84% before" in said
    assert len({len(line) for line in showcase.table(rows).splitlines()}) == 1


def test_what_cannot_be_reported_is_said_in_a_sentence(main, tmp_path):
    with pytest.raises(PatinaError, match="no such file"):
        main(["--lora", str(tmp_path / "no.safetensors"), "--output", str(tmp_path / "a.png")])
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(PatinaError, match=r"a\.png: "):
        main(["--lora", str(tmp_path / "a.png"), "--output", str(tmp_path / "b.png")])
