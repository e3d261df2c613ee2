"""Twenty thousand steps take no more memory and no more open files than five hundred."""

import os
import sys
import time
from pathlib import Path

import pytest

from patina import configfile
from patina.run import run
from patina.watch.watcher import Watcher
from tests.faults import runs

STEPS, SETTLED = 20_000, 500
GROWTH = 0.02
# peft asks transformers' models for a property that transformers is renaming
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.soak
def test_memory_and_open_files_stay_as_they_were(tmp_path, monkeypatch, capsys) -> None:
    often = ("resume", "preview.every")
    words = [word for word in runs.of_texts(tmp_path / "texts").words if "=" in word and not word.startswith(often)]
    monkeypatch.chdir(tmp_path / "texts")
    seen: dict[int, tuple[int, int]] = {}
    note = Watcher.note

    def noted(self: Watcher, progress) -> None:
        note(self, progress)
        if progress.step == SETTLED or progress.step % 2000 == 0:
            seen[progress.step] = resident(), len(os.listdir("/proc/self/fd"))

    monkeypatch.setattr(Watcher, "note", noted)
    began = time.monotonic()
    # answers as often as is saved: every answer that was ever given is on the page, which grows by as much
    run(configfile.load(Path("run.yaml"), [*words, f"max_steps={STEPS}", "save_steps=5000", "preview.every=5000"]))
    with capsys.disabled():
        told = {step: f"{size / 1e6:.1f} MB, {files} files" for step, (size, files) in seen.items()}
        sys.stdout.write(f"\n{STEPS} steps in {time.monotonic() - began:.0f} s: {told}\n")
    size, files = seen[SETTLED]
    assert max(later for later, _ in seen.values()) <= size * (1 + GROWTH)
    assert {later for _, later in seen.values()} == {files}
