"""`train.py --plan` says what a run would do and take, and leaves no trace of itself."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from PIL import Image

from patina import forecast
from patina.data.buckets import Buckets
from patina.data.captions import Captioned
from patina.data.dataset import load_items, unencoded
from patina.forecast import Measured
from patina.run import run
from tests.test_run import SMALL, pictures, small
from tests.test_text_run import prepare
from tests.tiny_text import save
from tests.toolbox import ROOT, load_tool

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def plan(monkeypatch, capsys, *words: str) -> list[str]:
    """What `train.py --plan` says, line by line."""
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", "run.yaml", "--plan", *words])
    capsys.readouterr()
    assert load_tool("train", ROOT).main() == 0
    return capsys.readouterr().out.splitlines()


def files(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_a_run_on_pictures_is_foreseen_and_nothing_is_written(tmp_path, monkeypatch, capsys) -> None:
    pictures(tmp_path / "pictures")
    tiny.save_sd15(tmp_path / "base")
    (tmp_path / "run.yaml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    before = files(tmp_path)
    words = ("train_text_encoder=false", "gradient_accumulation_steps=2", "epochs=10", "dataset.colour=0.1")
    said = plan(monkeypatch, capsys, *words)
    assert files(tmp_path) == before
    assert not Path("out").exists()
    assert "variants: 24 encodings of 6 pictures: 4 variants each" in said
    assert "  pictures  6: 2 of 64x64, 2 of 80x48, 2 of 48x80" in said
    assert "  steps     6 of batch 2 x 2: 4.0 epochs" in said
    (measured,) = [line for line in said if line.startswith("  time      ")]
    assert " s a step, by one step of the largest batch: " in measured
    assert measured.endswith(" for 6 steps at most, previews and saves left out")
    assert not [line for line in said if line.startswith("  memory")]  # there is no card
    assert said[-1] == "nothing was trained and nothing written; leave out --plan to begin"
    path = run(small("max_steps=2", "save_steps=0", "preview.every=0"))
    before = files(tmp_path)
    said = plan(monkeypatch, capsys, "resume=auto", "train_text_encoder=true")
    assert files(tmp_path) == before
    assert path in {Path(file).relative_to(tmp_path) for file in before}
    assert "  steps     6 of batch 2: 2.0 epochs, from 2 on" in said
    assert [line for line in said if " for 4 steps at most" in line]


def test_a_run_on_texts_is_foreseen_and_nothing_is_written(tmp_path, monkeypatch, capsys) -> None:
    prepare(tmp_path, save(tmp_path / "llama"))
    monkeypatch.chdir(tmp_path)
    before = files(tmp_path)
    said = plan(monkeypatch, capsys)
    assert files(tmp_path) == before
    assert not Path("out").exists()
    assert [line for line in said if line.startswith("  texts     9 rows")]
    assert [line for line in said if line.startswith("  time      ") and " for 6 steps at most" in line]


def test_pictures_are_planned_as_they_will_be_encoded(tmp_path) -> None:
    folder, vae = tmp_path / "pictures", tiny.sd15().vae
    pictures(folder, count=3)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (96, 50)).save(folder / "turned.jpg", exif=turned)
    Image.new("RGB", (50, 96)).save(folder / "upright.jpg")
    captioned = [Captioned(path, path.name, repeats=2) for path in sorted(folder.iterdir()) if path.suffix != ".csv"]
    how = {"buckets": Buckets(64, 8)}
    planned = unencoded(captioned, **how, channels=4, scale=8)
    encoded = load_items(captioned, vae, **how, cache_dir=tmp_path / "cache", workers=1)
    for one, other in zip(planned, encoded, strict=True):
        shapes = [[(at.mean.shape, at.std.shape, at.sizes) for at in item.latents] for item in (one, other)]
        assert shapes[0] == shapes[1]
        assert vars(replace(one, latents=())) == vars(replace(other, latents=()))
    assert planned[-1].latents[0].sizes == planned[-2].latents[0].sizes


def test_what_was_measured_is_said() -> None:
    time, memory = forecast.lines(Measured(0.0441, 3, 5 * 2**30, 24 * 2**30), 2000)
    said = "0.0441 s a step, by 3 steps of the largest batch: 01:28 for 2000 steps at most, previews and saves left out"
    assert time == f"time      {said}"
    assert memory == "memory    5.0 of the card's 24.0 GiB at the most"
