"""Modes, places, interruptions: only what was asked for changes, and a killed run ends as one that was not killed."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import pytest
import torch
from PIL import Image
from tiny_captioner import picture, save_tiny_captioner
from toolbox import load_tool

from patina.caption.batches import batches
from patina.caption.captioner import Caption
from patina.caption.label import label_folder, plan_labels
from patina.caption.polish import Polish
from patina.data.captions import read_table, write_table
from patina.errors import PatinaError


@pytest.fixture(scope="module")
def auto_label():
    return load_tool("auto_label").main


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny_captioner(tmp_path_factory.mktemp("model") / "captioner")


class Scripted:
    """A backend without a model: it names the width, can be told to fail, and counts."""

    name = "scripted"
    kind: Literal["caption", "tags"] = "caption"

    def __init__(self, on_batch: Callable[[int], None] = lambda _: None, text: str = "{} wide") -> None:
        self.sizes: list[int] = []
        self._on_batch, self._text = on_batch, text

    def load(self, device: torch.device, dtype: torch.dtype) -> None: ...

    def prepare(self, image: Image.Image) -> tuple[int, int]:
        return image.size

    def generate(self, batch: Sequence[tuple[int, int]]) -> list[Caption]:
        self._on_batch(len(batch))
        self.sizes.append(len(batch))
        return [Caption(self._text.format(width), truncated=False) for width, _ in batch]

    def fingerprint(self) -> str:
        return "0" * 12


def save_pictures(folder: Path, count: int) -> list[str]:
    folder.mkdir(exist_ok=True)
    names = [f"{number}.png" for number in range(count)]
    for number, name in enumerate(names):
        Image.new("RGB", (24 + number, 8)).save(folder / name)
    return names


ROWS = {"0.png": "my own, words", "1.png": "", "gone.png": "kept"}


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("missing", ["my own, words", "ptna, 25 wide", "ptna, 26 wide"]),
        ("overwrite", ["ptna, 24 wide", "ptna, 25 wide", "ptna, 26 wide"]),
        ("append", ["my own, words, 24 wide", "ptna, 25 wide", "ptna, 26 wide"]),
    ],
)
def test_a_mode_changes_what_it_says_and_keeps_the_rest(tmp_path, mode, expected):
    save_pictures(tmp_path / "in", 3)
    table = tmp_path / "out.csv"
    write_table(table, ROWS)
    before = table.read_bytes()
    for trigger in ("first", "ptna") if mode == "overwrite" else ("ptna",):
        label_folder(plan_labels(tmp_path / "in", table, mode=mode), Scripted(), polish=Polish(trigger))
    assert read_table(table) == dict(zip(["0.png", "1.png", "2.png"], expected, strict=True)) | {"gone.png": "kept"}
    copies = [path.name for path in tmp_path.iterdir() if path.is_file()]
    if mode == "missing":
        assert copies == ["out.csv"]
    else:
        assert sorted(copies) == ["out.csv", "out.csv.bak"]
        assert (tmp_path / "out.csv.bak").read_bytes() == before, "the copy is of what the user had"


@pytest.mark.parametrize("mode", ["missing", "overwrite", "append"])
@pytest.mark.parametrize("gentle", [True, False])
def test_a_run_that_was_killed_goes_on_and_ends_as_if_it_had_not_been(tmp_path, mode, gentle):
    names = save_pictures(tmp_path / "in", 20)
    rows = {name: f"old {number}" for number, name in enumerate(names) if number % 3 == 0}
    whole, parts = tmp_path / "whole" / "out.csv", tmp_path / "parts" / "out.csv"
    for table in (whole, parts):
        write_table(table, rows)
    text = "{} wide, neon lights"  # common to the set: known only once the last picture is there
    label_folder(plan_labels(tmp_path / "in", whole, mode=mode), Scripted(text=text), batch_size=2)
    assert "neon" not in whole.read_text(encoding="utf-8")

    def stop(_: int) -> None:
        if len(dying.sizes) == 4:
            raise KeyboardInterrupt

    dying = Scripted(stop, text)
    with pytest.raises(KeyboardInterrupt):
        label_folder(plan_labels(tmp_path / "in", parts, mode=mode), dying, batch_size=2, save_every=3)
    if not gentle:  # no chance to save: the table as it was, and the journal's last line cut short
        write_table(parts, rows)
        journal = parts.with_name(".out.csv.journal")
        journal.write_bytes(journal.read_bytes()[:-9])
    rest = Scripted(text=text)
    label_folder(plan_labels(tmp_path / "in", parts, mode=mode), rest, batch_size=2)
    todo = 20 if mode != "missing" else 13
    assert sum(rest.sizes) == todo - 8 + (0 if gentle else 1)
    assert parts.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in parts.parent.iterdir()) == sorted(path.name for path in whole.parent.iterdir())


def test_what_the_user_edits_between_two_runs_is_kept(tmp_path):
    save_pictures(tmp_path / "in", 8)
    table = tmp_path / "out.csv"

    def stop(_: int) -> None:
        if len(dying.sizes) == 3:
            raise KeyboardInterrupt

    dying = Scripted(stop)
    with pytest.raises(KeyboardInterrupt):
        label_folder(plan_labels(tmp_path / "in", table), dying, batch_size=2)
    rows = read_table(table)
    assert len(rows) == 6
    write_table(table, rows | {"1.png": "mine"})
    label_folder(plan_labels(tmp_path / "in", table), Scripted(), polish=Polish("ptna"))
    done = read_table(table)
    assert done.pop("1.png") == "mine"
    assert all(prompt.startswith("ptna, ") for prompt in done.values()), "the new trigger reaches the first run's rows"


def test_memory_that_runs_out_halves_the_batch_and_the_run_goes_on(tmp_path):
    names = save_pictures(tmp_path / "in", 20)

    def full(size: int) -> None:
        if size > 3:
            raise torch.OutOfMemoryError("full")

    captioner = Scripted(full)
    assert label_folder(plan_labels(tmp_path / "in", tmp_path / "out.csv"), captioner, batch_size=8).done == 20
    assert captioner.sizes == [2] * 10
    assert read_table(tmp_path / "out.csv") == {name: f"{24 + number} wide" for number, name in enumerate(names)}

    def never(_: int) -> None:
        raise torch.OutOfMemoryError("full")

    with pytest.raises(
        PatinaError, match="not even one picture fits the GPU's memory; use a smaller model, --quantize"
    ):
        label_folder(plan_labels(tmp_path / "in", tmp_path / "none.csv"), Scripted(never), batch_size=8)


def test_batches_hold_alike_pictures_and_lose_none(tmp_path):
    save_pictures(tmp_path / "in", 25)
    seen: list[list[int]] = []

    class Watching(Scripted):
        def generate(self, batch: Sequence[tuple[int, int]]) -> list[Caption]:
            seen.append([width % 3 for width, _ in batch])
            return super().generate(batch)

    plan = plan_labels(tmp_path / "in", tmp_path / "out.csv")
    label_folder(plan, Watching(), batch_size=4, alike=lambda size: size[0] % 3)
    assert all(len(set(group)) == 1 for group in seen)
    assert max(map(len, seen)) == 4
    assert list(read_table(tmp_path / "out.csv").values()) == [f"{24 + number} wide" for number in range(25)]
    assert list(batches(iter([]), 4, lambda _: 0, lambda *_: None)) == []


@pytest.mark.parametrize("suffix", ["txt", "caption"])
def test_a_name_too_long_for_a_text_beside_it_is_named_and_the_others_go_on(tmp_path, auto_label, capsys, suffix):
    names = [*save_pictures(tmp_path, 2), "長" * 83 + "ab.png"]  # 255 bytes
    picture(2).save(tmp_path / names[2])
    command = ["--input", str(tmp_path), "--sidecar", suffix, "--backend", "offline"]
    assert auto_label(command) == 1
    said = capsys.readouterr().err
    assert "1 images could not be read" in said
    assert f"{names[2]}: the name is so long that a text beside it cannot be written" in said
    texts = [f"{number}.{suffix}" for number in range(2)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, *texts])
    (tmp_path / names[2]).rename(tmp_path / f"{'長' * 70}.png")
    assert auto_label([*command, "--mode", "overwrite"]) == 0  # which keeps the texts that it replaces


def test_texts_beside_the_pictures(tmp_path, auto_label, model, capsys):
    names = save_pictures(tmp_path, 3)
    (tmp_path / "0.txt").write_text("mine\nand a second line", encoding="utf-8")
    command = ["--input", str(tmp_path), "--sidecar", "txt", "--model", str(model), "--device", "cpu"]
    assert auto_label(command) == 0
    assert (tmp_path / "0.txt").read_text(encoding="utf-8") == "mine\nand a second line"
    texts = {name: (tmp_path / name).with_suffix(".txt").read_text(encoding="utf-8") for name in names}
    assert all(text.endswith("\n") and text.count("\n") == 1 for name, text in texts.items() if name != "0.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "0.txt", "1.txt", "2.txt"])
    assert auto_label([*command, "--mode", "overwrite", "--limit", "1"]) == 0
    assert (tmp_path / "0.txt.bak").read_text(encoding="utf-8") == "mine\nand a second line"
    assert (tmp_path / "0.txt").read_text(encoding="utf-8") != "mine\nand a second line"
    assert not (tmp_path / "1.txt.bak").exists()
    Image.new("RGB", (8, 8)).save(tmp_path / "1.jpg")
    with pytest.raises(PatinaError, match=r"would share 1\.txt with it; rename one"):
        auto_label(command)


def test_columns_of_hugging_face(tmp_path, auto_label, model):
    save_pictures(tmp_path, 2)
    table = tmp_path / "metadata.csv"
    command = ["--input", str(tmp_path), "--output", str(table), "--model", str(model), "--device", "cpu"]
    assert auto_label([*command, "--hf", "--limit", "1"]) == 0
    assert table.read_text(encoding="utf-8").splitlines()[0] == "file_name,text"
    assert auto_label(command) == 0
    assert table.read_text(encoding="utf-8").splitlines()[0] == "file_name,text", "a table keeps the columns it has"
    assert list(read_table(table)) == ["0.png", "1.png"]
    write_table(table, {})
    with pytest.raises(PatinaError, match="only file_name,text can be continued"):
        auto_label([*command, "--hf"])


def test_a_dry_run_prints_and_writes_nothing(tmp_path, auto_label, model, capsys):
    save_pictures(tmp_path / "in", 5)
    output = tmp_path / "out.csv"
    command = ["--input", str(tmp_path / "in"), "--output", str(output), "--model", str(model), "--device", "cpu"]
    assert auto_label([*command, "--dry-run", "--limit", "2", "--trigger", "ptna"]) == 0
    out = capsys.readouterr().out
    assert "\n0.png: ptna, " in out
    assert "\n1.png: ptna, " in out
    assert "2.png" not in out
    assert "2 captions, none written (--dry-run)" in out
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_without_a_model_texts_names_or_the_trigger(tmp_path, auto_label, capsys):
    for name in ("red_bird.png", "0001.png", "IMG_2.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "0001.txt").write_text("a painting of a cow", encoding="utf-8")
    (tmp_path / "broken.png").write_bytes(b"")
    table = tmp_path / "metadata.csv"
    command = ["--input", str(tmp_path), "--output", str(table), "--backend", "offline", "--trigger", "ptna"]
    assert auto_label(command) == 1
    assert read_table(table) == {"0001.png": "ptna, a cow", "IMG_2.png": "ptna", "red_bird.png": "ptna, red bird"}
    out, err = capsys.readouterr()
    assert "1 captions from a text beside it" in out
    assert "1 captions from no text: the trigger alone" in out
    assert "style pruned: 'painting of' (a word of style, 1x)" in out
    assert "broken.png" in err


def test_pruned_words_are_printed_or_only_listed(tmp_path, auto_label, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a cat, digital art, solo, very nice", encoding="utf-8")
    command = ["--input", str(tmp_path), "--backend", "offline", "--mode", "overwrite", "--replace", "very nice=nice"]
    command += ["--blacklist", "solo, bad", "--output", str(tmp_path / "out.csv")]
    for mode, prompt, words in (
        ("list", "a cat, digital art, nice", "--prune-style auto would prune: 'digital art' (a word of style, 1x)"),
        ("auto", "a cat, nice", "style pruned: 'digital art'"),
        ("off", "a cat, digital art, nice", "1 captions from a text beside it"),
    ):
        assert auto_label([*command, "--prune-style", mode]) == 0
        assert read_table(tmp_path / "out.csv") == {"a.png": prompt}
        out = capsys.readouterr().out
        assert words in out
        assert ("style pruned" in out, "would prune" in out) == (mode == "auto", mode == "list")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--output", "x.csv", "--sidecar", "txt"], "say where the captions go"),
        ([], "say where the captions go"),
        (["--sidecar", "txt", "--hf"], "it goes with --output"),
        (["--output", "x.csv", "--replace", "ab"], "--replace"),
        (["--output", "x.csv", "--batch-size", "-1"], "--batch-size"),
        (["--output", "x.csv", "--mode", "some"], "--mode"),
    ],
)
def test_a_command_line_that_contradicts_itself_ends_with_2(tmp_path, auto_label, options, words, capsys):
    with pytest.raises(SystemExit) as end:
        auto_label(["--input", str(tmp_path), *options])
    assert end.value.code == 2
    assert words in capsys.readouterr().err


def test_ctrl_c_says_that_the_same_command_goes_on(tmp_path, auto_label, model, capsys):
    for number in range(150):
        picture(1).save(tmp_path / f"{number}.bmp")
    table, journal = tmp_path / "out.csv", tmp_path / ".out.csv.journal"
    command = ["--input", str(tmp_path), "--output", str(table), "--model", str(model), "--device", "cpu"]

    def interrupt() -> None:
        while not journal.exists() or journal.read_text(encoding="utf-8").count("\n") < 4:
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is born deaf to it
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        auto_label([*command, "--batch-size", "1"])
    thread.join()
    assert f"{table}: what is done is kept; the same command goes on with the rest" in capsys.readouterr().err
    kept = {json.loads(line)["name"] for line in journal.read_text(encoding="utf-8").splitlines()[1:]}
    assert set(read_table(table)) == kept
    assert 3 <= len(kept) < 150
    assert auto_label(command) == 0
    assert auto_label([*command, "--output", str(tmp_path / "at_once.csv")]) == 0
    assert table.read_bytes() == (tmp_path / "at_once.csv").read_bytes()


def test_captions_that_a_spreadsheet_would_compute_are_named_and_written_as_they_are(tmp_path, auto_label, capsys):
    captions = {"a.png": "=HYPERLINK(A1)", "b.png": "a - b", "c.png": "@sum", "d.png": "-1 degrees", "e.png": "+2"}
    for name, caption in captions.items():
        picture(3).save(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text(caption, encoding="utf-8")
    table = tmp_path / "out.csv"
    command = ["--input", str(tmp_path), "--backend", "offline", "--prune-style", "off"]
    assert auto_label([*command, "--output", str(table)]) == 0
    assert read_table(table) == captions
    said = "4 captions begin as a formula does, which a spreadsheet may compute; import the table as text: a.png, c.png"
    assert said in capsys.readouterr().out
    assert auto_label([*command, "--sidecar", "caption"]) == 0
    assert "formula" not in capsys.readouterr().out
