"""tools/auto_label.py captions what is left to caption, and keeps what it has whatever interrupts it."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import pytest
import torch
from PIL import Image
from tiny_captioner import picture, save_tiny_captioner
from toolbox import TOOLS, load_tool

from patina.caption.captioner import Caption
from patina.caption.coca import CocaCaptioner
from patina.caption.label import label_folder, plan_labels
from patina.caption.polish import Polish
from patina.data.captions import find_captions, read_table, write_table
from patina.data.images import find_images
from patina.data.wording import with_trigger
from patina.errors import PatinaError, run_command

TOOL = TOOLS / "auto_label.py"
auto_label = load_tool("auto_label").main


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny_captioner(tmp_path_factory.mktemp("model") / "captioner")


@pytest.fixture(scope="module")
def captioner(model) -> CocaCaptioner:
    captioner = CocaCaptioner(str(model))
    captioner.load(torch.device("cpu"), torch.float32)
    return captioner


def save_pictures(folder: Path, count: int) -> list[str]:
    folder.mkdir(exist_ok=True)
    names = [f"{number}.png" for number in range(count)]
    for number, name in enumerate(names):
        picture(number).save(folder / name)
    return names


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a cat", "ptna, a cat"),
        ("ptna, a cat", "ptna, a cat"),
        ("Ptna style cat", "Ptna style cat"),
        ("ptnas in a row", "ptna, ptnas in a row"),
        ("", "ptna"),
    ],
)
def test_the_trigger_stands_in_front_once(caption, expected):
    assert with_trigger("ptna", caption) == expected
    assert with_trigger("ptna", expected) == expected
    assert with_trigger("", caption) == caption


class Scripted:
    """A backend without a model, which can watch the pipeline and be interrupted."""

    name = "scripted"
    kind: Literal["caption", "tags"] = "caption"

    def __init__(self, on_batch: Callable[[int], None] = lambda _: None) -> None:
        self.prepared, self.written, self.furthest = 0, 0, 0
        self._on_batch, self._lock = on_batch, threading.Lock()

    def load(self, device: torch.device, dtype: torch.dtype) -> None: ...

    def prepare(self, image: Image.Image) -> tuple[int, int]:
        with self._lock:
            self.prepared += 1
            self.furthest = max(self.furthest, self.prepared - self.written)
        return image.size

    def generate(self, batch: Sequence[tuple[int, int]]) -> list[Caption]:
        time.sleep(0.01)
        self._on_batch(self.written)
        with self._lock:
            self.written += len(batch)
        return [Caption(f"{width} wide", truncated=False) for width, _ in batch]

    def fingerprint(self) -> str:
        return "0" * 12


def test_reading_runs_ahead_of_the_model_but_not_without_bound(tmp_path):
    save_pictures(tmp_path / "in", 60)
    captioner = Scripted()
    plan = plan_labels(tmp_path / "in", tmp_path / "out.csv")
    assert label_folder(plan, captioner, batch_size=4, workers=2).done == 60
    assert 4 < captioner.furthest <= 4 + 2 * 4 + 2 + 1


def test_ctrl_c_keeps_the_rows_so_far_and_the_next_run_goes_on(tmp_path):
    names = save_pictures(tmp_path / "in", 30)

    def interrupt(written: int) -> None:
        if written == 12:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)

    table = tmp_path / "out.csv"
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is born deaf to it
    with pytest.raises(KeyboardInterrupt):
        label_folder(plan_labels(tmp_path / "in", table), Scripted(interrupt), batch_size=4)
    assert list(read_table(table)) == names[:12]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.csv.journal", "in", "out.csv"]
    rest = Scripted()
    assert label_folder(plan_labels(tmp_path / "in", table), rest, batch_size=4).done == 18
    assert rest.written == 18
    label_folder(plan_labels(tmp_path / "in", tmp_path / "at_once.csv"), Scripted())
    assert table.read_bytes() == (tmp_path / "at_once.csv").read_bytes()


def test_a_process_that_dies_without_warning_has_saved_every_few_batches(tmp_path):
    names, seen = save_pictures(tmp_path / "in", 20), {}
    table = tmp_path / "out.csv"

    def look(written: int) -> None:
        seen[written] = len(read_table(table)) if table.exists() else 0

    label_folder(plan_labels(tmp_path / "in", table), Scripted(look), batch_size=2, save_every=3)
    assert [seen[written] for written in range(0, 20, 2)] == [0, 2, 2, 2, 8, 8, 8, 14, 14, 14]
    assert list(read_table(table)) == names


def test_rows_of_the_user_stay_as_they_are(tmp_path):
    save_pictures(tmp_path / "in", 3)
    write_table(tmp_path / "out.csv", {"1.png": "my own, words", "2.png": "", "gone.png": "kept"})
    plan = plan_labels(tmp_path / "in", tmp_path / "out.csv")
    assert [path.name for path in plan.todo] == ["0.png", "2.png"]
    assert plan.gone() == ["gone.png"]
    assert plan.rows_without("ptna") == ["1.png", "gone.png"]
    label_folder(plan, Scripted(), polish=Polish("ptna"))
    assert read_table(tmp_path / "out.csv") == {
        "0.png": "ptna, 24 wide",
        "1.png": "my own, words",
        "2.png": "ptna, 26 wide",
        "gone.png": "kept",
    }


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16", "utf-8-sig"])
def test_a_table_stays_in_its_encoding(tmp_path, encoding):
    save_pictures(tmp_path / "in", 2)
    (tmp_path / "out.csv").write_text("filename,prompt\n0.png,一只猫在睡觉\n", encoding=encoding)
    label_folder(plan_labels(tmp_path / "in", tmp_path / "out.csv"), Scripted(), polish=Polish("ptna"))
    written = (tmp_path / "out.csv").read_bytes()
    assert written == 'filename,prompt\n0.png,一只猫在睡觉\n1.png,"ptna, 21 wide"\n'.encode(encoding)


def test_a_table_with_more_in_it_is_not_overwritten(tmp_path):
    save_pictures(tmp_path / "in", 1)
    text = "filename,prompt,score\n0.png,a cat,7\n"
    (tmp_path / "out.csv").write_text(text, encoding="utf-8")
    with pytest.raises(PatinaError, match="give another --output"):
        plan_labels(tmp_path / "in", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text(encoding="utf-8") == text


def command(folder: Path, output: Path, model: Path, *more: str) -> int:
    return auto_label(
        ["--input", str(folder), "--output", str(output), "--model", str(model), "--device", "cpu", *more]
    )


def test_a_folder_is_captioned_so_that_training_finds_it(tmp_path, model, captioner, capsys):
    folder, table = tmp_path / "in", tmp_path / "in" / "metadata.csv"
    names = save_pictures(folder, 12)
    assert command(folder, table, model, "--trigger", "ptna", "--batch-size", "4") == 0
    written = captioner.generate([captioner.prepare(picture(number)) for number in range(12)])
    expected = {name: f"ptna, {caption.text}" for name, caption in zip(names, written, strict=True)}
    assert read_table(table) == expected
    assert list(read_table(table)) == names
    pairs, uncaptioned = find_captions(find_images(folder), folder, table)
    assert {pair.path.name: pair.caption for pair in pairs} == expected
    assert not uncaptioned
    first, *_, last = capsys.readouterr().out.splitlines()
    assert f"CoCa {model} ({captioner.fingerprint()}) on " in first
    assert f"12 images in {folder}, 0 already captioned" in first
    assert "length limit" in last

    before = table.read_bytes()
    assert command(folder, table, model) == 0
    assert "12 already captioned: nothing to do" in capsys.readouterr().out
    assert table.read_bytes() == before


def test_subfolders_are_named_from_the_input(tmp_path, model):
    save_pictures(tmp_path, 1)
    save_pictures(tmp_path / "sub", 2)
    assert command(tmp_path, tmp_path / "out.csv", model, "--recursive") == 0
    assert list(read_table(tmp_path / "out.csv")) == ["0.png", "sub/0.png", "sub/1.png"]


def test_unreadable_pictures_are_listed_and_the_others_done(tmp_path, model, capsys):
    names = save_pictures(tmp_path, 5)
    data = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "4.png").write_bytes(b"")
    assert command(tmp_path, tmp_path / "out.csv", model, "--batch-size", "2") == 1
    assert list(read_table(tmp_path / "out.csv")) == [names[0], names[1], names[3]]
    out, err = capsys.readouterr()
    assert f"{tmp_path / 'out.csv'}: 3 new captions; proof-read it before training" in out
    assert "2 images could not be read:" in err
    assert f"{tmp_path / '2.png'}: the picture is damaged" in err
    assert f"{tmp_path / '4.png'}: the file is empty" in err


@pytest.mark.parametrize("options", [["--batch-size", "0"], ["--workers", "x"], ["--device", "tpu"]])
def test_a_wrong_command_line_ends_with_2(tmp_path, model, options):
    with pytest.raises(SystemExit) as end:
        command(tmp_path, tmp_path / "out.csv", model, *options)
    assert end.value.code == 2


def test_wrong_input_ends_with_2_and_one_sentence(tmp_path, model, capsys):
    with pytest.raises(SystemExit) as end:
        run_command(lambda: command(tmp_path / "absent", tmp_path / "out.csv", model))
    assert end.value.code == 2
    assert (
        capsys.readouterr().err == f"{tmp_path / 'absent'}: no such folder; give the folder that holds the pictures\n"
    )


def test_without_a_model_the_one_beside_the_tool_is_used(tmp_path, model, capsys):
    (tmp_path / "tools").mkdir()
    shutil.copy(TOOL, tmp_path / "tools")
    main = load_tool("auto_label", tmp_path / "tools").main
    save_pictures(tmp_path / "in", 1)
    arguments = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out.csv")]
    with pytest.raises(PatinaError, match="captioner is not there; name a model, for example --model coca_"):
        main(arguments)
    shutil.copytree(model, tmp_path / "data" / "demo" / "captioner")
    assert main(arguments) == 0
    assert str(tmp_path / "data" / "demo" / "captioner") in capsys.readouterr().out


def test_help_comes_at_once_and_from_anywhere(tmp_path):
    code = "import runpy, sys; sys.argv[1:] = ['--help']\ntry: runpy.run_path(TOOL, run_name='__main__')\nfinally: "
    code += "print(sorted({'torch', 'open_clip', 'PIL'} & set(sys.modules)))"
    run = [sys.executable, "-c", code.replace("TOOL", repr(str(TOOL)))]
    answer = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "--trigger WORD" in answer.stdout
    assert answer.stdout.splitlines()[-1] == "[]"
