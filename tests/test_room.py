"""A disk that is filling up ends a run in a sentence before anything is cut short, and the run goes on afterwards."""

import shutil
from pathlib import Path

import pytest
import torch

from patina.errors import PatinaError
from patina.lora.file import write_tensors
from patina.run import run
from tests.test_text_run import metrics, prepare, small
from tests.tiny_text import save

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def test_a_run_ends_with_its_last_checkpoint_whole_and_goes_on(tmp_path, monkeypatch) -> None:
    prepare(tmp_path, save(tmp_path / "llama"))
    monkeypatch.chdir(tmp_path)
    checkpoints = Path("out/small/checkpoints")
    real = shutil.disk_usage(tmp_path)

    def filling(path: Path):
        """The disk's own answer, but for the figure of what is left once there is a checkpoint."""
        return real._replace(free=1000) if list(checkpoints.glob("step-*")) else real

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", filling)
        with pytest.raises(
            PatinaError, match=r"^out/small: [\d.]+ MB are to be written and its disk has 0\.0 MB left; "
        ):
            run(small())
    assert [path.name for path in checkpoints.iterdir()] == ["step-000002"]
    assert not list(Path("out").rglob("*.part"))
    assert not Path("out/small/small").exists()
    run(small("resume=auto"))
    run(small("output_dir=out/whole"))
    assert [line["loss"] for line in metrics("out/small")] == [line["loss"] for line in metrics("out/whole")]


def test_a_lora_file_is_not_begun_where_it_has_no_room(tmp_path) -> None:
    path = tmp_path / "style.safetensors"
    write_tensors(path, {"a": torch.zeros(4)}, {})
    before = path.read_bytes()
    with pytest.raises(PatinaError, match=r"8,000,000,000,000\.0 MB are to be written"):
        write_tensors(path, {"a": torch.zeros(1).expand(10**18)}, {})  # takes no memory: one number, said often
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
