"""A run ends when what is held out is no longer learned, and keeps the state that was best; a resume ends alike."""

import json
import shutil
from pathlib import Path

import pytest

from patina import checkpoint, configfile
from patina.best import Best
from patina.errors import PatinaError
from patina.run import run
from tests.test_run import SMALL as PICTURES
from tests.test_run import pictures
from tests.test_text_run import metrics, prepare, small
from tests.tiny import save_sd15
from tests.tiny_text import save
from tests.toolbox import team_of_two

ALIKE = ("validation.patience=2", "validation.every=1", "save_steps=1", "scheduler=constant", "optimizer=adamw")
WORDS = (*ALIKE, "max_steps=40", "learning_rate=3e-2")
LONGEST = 120
"""Seconds that a team may take; it takes ten."""


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("base"))


@pytest.fixture
def place(tmp_path, base, monkeypatch) -> Path:
    """Answers to learn and others to measure on that agree at first, since both are words, and then no longer do."""
    prepare(tmp_path, base)
    rows = ({"instruction": f"other {n}?", "output": "yes no " * (n + 1)} for n in range(3))
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def adapter(folder: str) -> bytes:
    return Path(folder, "adapter_model.safetensors").read_bytes()


def lowest(folder: str) -> int:
    return min(metrics(folder), key=lambda line: line["validation_loss"])["step"]


def test_the_best_state_is_saved_once_nothing_better_came(place, capsys) -> None:
    run(small(*WORDS))
    best, last = lowest("out/small"), metrics("out/small")[-1]["step"]
    assert best >= 1
    assert last == best + 2 < 40
    assert adapter("out/small/small") == adapter(f"out/small/small-{best:06d}")
    assert adapter("out/small/small") != adapter(f"out/small/small-{last:06d}")
    said = capsys.readouterr().out
    assert f"stopped after step {last} of 40: the validation loss was lowest at step {best}" in said
    assert "2 measurements since were no better" in said


def test_a_resume_counts_on_and_ends_alike(place) -> None:
    run(small(*WORDS))
    best = lowest("out/small")
    for kept in {max(best - 1, 1), best, best + 1, best + 2}:
        shutil.copytree("out/small", f"out/from{kept}")
        shutil.rmtree(f"out/from{kept}/small")
        for path in Path(f"out/from{kept}/checkpoints").iterdir():
            if checkpoint.load(path).step > kept:
                shutil.rmtree(path)
        run(small(*WORDS, f"output_dir=out/from{kept}", "output_name=small", "resume=auto"))
        assert adapter(f"out/from{kept}/small") == adapter("out/small/small")
        losses = [[line["validation_loss"] for line in metrics(f"out/{name}")] for name in ("small", f"from{kept}")]
        assert losses[0] == losses[1]


def test_a_run_that_gets_better_to_its_end_takes_all_its_steps(place, capsys) -> None:
    shutil.copy("train.jsonl", "other.jsonl")
    run(small(*ALIKE, "max_steps=4", "learning_rate=1e-3"))
    assert [line["step"] for line in metrics("out/small")] == [1, 2, 3, 4]
    assert lowest("out/small") == 4
    assert "the validation loss was lowest at step 4" in capsys.readouterr().out


def test_two_processes_stop_after_the_same_step(place) -> None:
    with team_of_two("--config", "run.yaml", *WORDS, "output_dir=out/two", "output_name=two") as team:
        for process in team:
            process.join(LONGEST)
        said = Path("said0/err").read_text() + Path("said1/err").read_text()
        assert [process.exitcode for process in team] == [0, 0], said
    # what one process says after a step the others hear after the next
    assert metrics("out/two")[-1]["step"] == lowest("out/two") + 3 < 40
    assert adapter("out/two/two") == adapter(f"out/two/two-{lowest('out/two'):06d}")


def test_pictures_stop_too(tmp_path, monkeypatch) -> None:
    pictures(tmp_path / "pictures")
    save_sd15(tmp_path / "base")
    (tmp_path / "run.yaml").write_text(PICTURES)
    monkeypatch.chdir(tmp_path)
    words = ["validation.patience=1", "validation.every=1", "validation.split=0.5", "max_steps=60", "save_steps=1"]
    words += ["learning_rate=3e-2", "scheduler=constant", "optimizer=adamw", "preview.every=0", "metadata=none"]
    path = run(configfile.load(Path("run.yaml"), words))
    steps = metrics(str(path.parent))
    best = min(steps, key=lambda line: line["validation_loss"])["step"]
    assert steps[-1]["step"] == best + 1 < 60
    assert path.read_bytes() == path.with_name(f"{path.stem}-{best:06d}.safetensors").read_bytes()


def test_a_measurement_that_is_no_number_is_never_better() -> None:
    best = Best()
    best.note(1, float("nan"), {})
    assert (best.step, best.since) == (0, 1)
    best.note(2, 1.0, {})
    best.note(3, float("nan"), {})
    assert (best.step, best.since, best.over(1), best.over(2), best.over(None)) == (2, 1, True, False, False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["validation.patience=2", "save_steps=0"], "validation.patience: counts measurements, and there is only one"),
        (["load_best_model_at_end=true"], "load_best_model_at_end: the best state is saved where validation.patience"),
    ],
)
def test_what_does_not_go_together_is_refused(place, words, said) -> None:
    with pytest.raises(PatinaError, match=said):
        small(*words)
