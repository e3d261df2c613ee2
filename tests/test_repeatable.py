"""On a GPU a run with `engine.deterministic` ends with the same bytes twice, and so does one that is gone on with."""

import pytest
import torch

from patina.engine.repeatable import repeatable
from patina.errors import PatinaError
from tests.faults import runs
from tests.test_resume_matrix import trained

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
SETTINGS = {
    "texts": ["mixed_precision=bf16", "lora_target=full", "text.packing=true", "max_length=64"],
    "texts in 4 bits": ["mixed_precision=bf16", "quantize=4bit", "lora_target=full"],
    "pictures": ["mixed_precision=fp16", "lora_target=full", "train_text_encoder=true", "dataset.cache_dir=cache"],
    "pictures uncaptured": ["mixed_precision=fp16", "engine.capture=off", "engine.fuse=off", "dataset.cache_dir=cache"],
}


@pytest.mark.filterwarnings("ignore:inner dimension:UserWarning")  # bitsandbytes' word on layers as narrow as these
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("case", SETTINGS)
def test_runs_on_a_gpu_end_with_the_same_bytes(case, tmp_path, monkeypatch) -> None:
    home = runs.RUNS[case.split()[0]](tmp_path / "home")
    monkeypatch.chdir(home.home)
    kept = [word for word in home.words if "=" in word and not word.startswith(("resume", "preview"))]
    words = [*kept, *SETTINGS[case], "engine.device=cuda", "engine.deterministic=true", "max_steps=6"]
    whole, again = trained(words, "whole"), trained(words, "again")
    resumed = trained(words, "resumed", "resume=out/whole/checkpoints/step-000002")
    assert again == whole
    assert resumed == whole


def test_what_cannot_repeat_itself_is_named() -> None:
    def fail() -> None:
        raise RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation, but you set ...")

    told = r"^engine.deterministic: torch has no way of computing cumsum_cuda_kernel "
    with pytest.raises(PatinaError, match=told), repeatable(True):
        fail()
    assert not torch.are_deterministic_algorithms_enabled()
