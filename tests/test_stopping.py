"""A run that is told to stop saves, says how to go on, and ends as if it had never stopped; told twice, it is gone."""

import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from patina.errors import run_command
from patina.run import run
from patina.stopping import SIGNALS, stopping
from patina.watch.watcher import Watcher
from tests.test_run import SMALL as PICTURES
from tests.test_run import pictures
from tests.test_text_run import metrics, prepare, small
from tests.tiny import save_sd15
from tests.tiny_text import save

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(autouse=True)
def handlers():
    """Python's own handlers, whatever the tests were started under: a shell's background job is born deaf to Ctrl-C."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    prepare(tmp_path, save(tmp_path / "llama"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tell(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def told_after(step: int, number: signal.Signals, monkeypatch) -> None:
    """Send a signal as soon as a step has been told of: on a CPU that step is then the last."""
    note = Watcher.note

    def noted(self: Watcher, progress):
        found = note(self, progress)
        if progress.step == step:
            tell(number)
        return found

    monkeypatch.setattr(Watcher, "note", noted)


def written(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (Path(folder) / "lora").iterdir()}


@pytest.mark.parametrize("number", SIGNALS)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(number, place, monkeypatch, capsys) -> None:
    words = ["output_name=lora", "save_steps=0", "optimizer=adamw"]
    with monkeypatch.context() as patch:
        told_after(2, number, patch)
        path = run(small("output_dir=out/parts", *words))
    said = capsys.readouterr().out
    assert path == Path("out/parts/checkpoints/step-000002")
    assert f"stopped after step 2 of 6, saved in {path}; go on with resume=auto\n" in said
    assert "Done" not in said
    assert not Path("out/parts/lora").exists()
    assert not list(Path("out").rglob("*.part"))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert run(small("output_dir=out/parts", "resume=auto", *words)) == Path("out/parts/lora")
    run(small("output_dir=out/whole", *words))
    assert written("out/parts") == written("out/whole")
    losses = [[line["loss"] for line in metrics(f"out/{name}")] for name in ("parts", "whole")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6


def test_a_stop_before_a_later_checkpoint_names_its_own(place, monkeypatch, capsys) -> None:
    run(small())
    told_after(3, signal.SIGTERM, monkeypatch)
    path = run(small("resume=out/small/checkpoints/step-000002"))
    assert path == Path("out/small/checkpoints/step-000003")
    assert f"go on with resume={path}\n" in capsys.readouterr().out


def test_a_stop_in_the_last_step_is_the_end(place, monkeypatch) -> None:
    told_after(2, signal.SIGTERM, monkeypatch)
    assert run(small("max_steps=2")) == Path("out/small/small")
    assert [path.name for path in Path("out/small/checkpoints").iterdir()] == ["step-000002"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_second_signal_ends_the_process_at_once(number, code) -> None:
    heard = []

    def main() -> int:
        with stopping() as asked:
            tell(number)
            heard.append(asked())
            tell(number)
            heard.append("still there")
        return 0

    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert heard == [True]
    assert ended.value.code == code
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_a_launcher_forwards_is_not_a_second_signal() -> None:
    with stopping(apart=60.0) as asked:
        assert not asked()
        tell(signal.SIGINT)
        tell(signal.SIGTERM)
        assert asked()


def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stopping() as asked:
        tell(signal.SIGINT)
        assert not asked()
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_only_the_main_thread_takes_signals() -> None:
    seen = []

    def other() -> None:
        with stopping() as asked:
            seen.append((asked(), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == [(False, signal.SIG_DFL)]


def test_a_run_on_pictures_stops_alike(tmp_path, monkeypatch) -> None:
    pictures(tmp_path / "pictures")
    save_sd15(tmp_path / "base")
    (tmp_path / "run.yaml").write_text(PICTURES)
    monkeypatch.chdir(tmp_path)
    words = ["save_steps=0", "max_steps=4", "lora_target=[to_q]", "train_text_encoder=false"]
    with monkeypatch.context() as patch:
        told_after(1, signal.SIGTERM, patch)
        assert run(small("output_dir=out/parts", *words)) == Path("out/parts/checkpoints/step-000001")
    assert not list(Path("out").rglob("parts.*"))
    one = load_file(run(small("output_dir=out/parts", "resume=auto", *words)))
    other = load_file(run(small("output_dir=out/whole", "dataset.cache_dir=out/parts/cache", *words)))
    assert all(torch.equal(one[key], other[key]) for key in one.keys() | other.keys())
    losses = [[line["loss"] for line in metrics(f"out/{name}")] for name in ("parts", "whole")]
    assert losses[0] == losses[1]
