"""Two runs never write into one folder at once, and a killed run leaves no lock behind."""

import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest

from patina.errors import PatinaError
from patina.lock import NAME, locked
from patina.run import run
from patina.watch.watcher import Watcher
from tests.test_text_run import prepare, small
from tests.tiny_text import save

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

HOLD = """
import sys
from pathlib import Path
from patina.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_second_run_gets_a_sentence_and_writes_nothing(tmp_path, monkeypatch) -> None:
    prepare(tmp_path, save(tmp_path / "llama"))
    monkeypatch.chdir(tmp_path)
    sentence = "output_dir: another run is under way in out/small; wait for its end, or write another output_dir"
    with locked(Path("out/small")):
        with pytest.raises(PatinaError) as refused:
            run(small("max_steps=1"))
        assert str(refused.value) == sentence
        assert [path.name for path in Path("out/small").iterdir()] == [NAME]
        assert run(small("max_steps=1", "output_dir=out/other")) == Path("out/other/other")
    assert run(small("max_steps=1")) == Path("out/small/small")


def test_a_run_holds_its_folder_while_it_trains(tmp_path, monkeypatch) -> None:
    prepare(tmp_path, save(tmp_path / "llama"))
    monkeypatch.chdir(tmp_path)
    seen, note = [], Watcher.note

    def noted(self: Watcher, progress) -> None:
        note(self, progress)
        seen.append(held(self.folder))

    monkeypatch.setattr(Watcher, "note", noted)
    run(small("max_steps=2"))
    assert seen == [True, True]
    assert not held(Path("out/small"))


def test_a_killed_process_leaves_the_folder_free(tmp_path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdin=PIPE, stdout=PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert held(tmp_path)
    finally:
        holder.kill()
        holder.communicate()
    assert (tmp_path / NAME).exists()
    assert not held(tmp_path)


def held(folder: Path) -> bool:
    try:
        with locked(folder):
            return False
    except PatinaError:
        return True
