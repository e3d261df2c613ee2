"""What this version saved, kept in tests/golden, is read and gone on from by every later one."""

import shutil
from pathlib import Path

import pytest

from patina import checkpoint, configfile
from patina.lora.file import read as read_lora
from patina.run import run
from tests.faults import runs

GOLDEN = Path(__file__).parent / "golden" / "run"
# peft asks transformers' models for a property that transformers is renaming
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def test_a_kept_checkpoint_is_gone_on_from(tmp_path, monkeypatch, capsys) -> None:
    words = [word for word in runs.of_texts(tmp_path / "texts").words if "=" in word]
    monkeypatch.chdir(tmp_path / "texts")
    kept = runs.FOLDER / "checkpoints" / "step-000002"
    shutil.copytree(GOLDEN / "step-000002", kept)
    before = checkpoint.load(kept)
    run(configfile.load(Path("run.yaml"), words))
    assert "from 2 on" in capsys.readouterr().out
    last = checkpoint.load(runs.FOLDER / "checkpoints" / "step-000006")
    assert last.step == 6
    assert last.lora.keys() == before.lora.keys()


def test_a_kept_lora_file_is_read() -> None:
    file = read_lora(GOLDEN / "small.safetensors")
    assert len(file.layers) == 32
    assert file.metadata["ss_network_dim"] == "2"
