"""What a run shows is what happened: each number once, over any number of resumes, and comparable pictures."""

import io
import json
import math
import sys

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_sampling import apart

from patina.progress import Progress
from patina.watch.board import Board
from patina.watch.console import bar, say
from patina.watch.metrics import MetricsFile, Smoothed
from patina.watch.previews import COLUMNS, Previews
from patina.watch.sheet import contact_sheet

KEYS = ["step", "epoch", "loss", "loss_smoothed", "learning_rate", "learning_rates", "grad_norm", "seconds"]


def progress(step: int, loss: float | None = None, **changes) -> Progress:
    facts = {
        "epoch": step / 10,
        "loss": 1 / step if loss is None else loss,
        "learning_rates": {"unet": 2e-4, "text_encoder": 1e-4},
        "grad_norm": 0.5,
        "seconds": 0.25,
        "samples": 4,
    }
    return Progress(step=step, **{**facts, **changes})


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- metrics.jsonl


def test_the_smoothed_mean_is_not_pulled_to_zero():
    mean, numbers = Smoothed(0.9), [4.0, 2.0, 6.0]
    assert math.isnan(mean.value)
    got = [mean.add(number) for number in numbers]
    weights = [0.9**2, 0.9, 1]
    assert got[0] == pytest.approx(4.0)
    assert got[2] == pytest.approx(sum(w * x for w, x in zip(weights, numbers, strict=True)) / sum(weights))
    assert mean.add(math.nan) == mean.add(math.inf) == got[2]


def test_each_step_is_a_line_that_is_there_at_once(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    with MetricsFile(path, 0) as metrics:
        smoothed = metrics.add(progress(1, 0.5))
        assert lines(path)[0]["loss_smoothed"] == smoothed == 0.5  # before it is closed
        metrics.add(progress(2))
    last = lines(path)[-1]
    assert list(last) == [*KEYS, "images_per_second"]
    assert last["learning_rate"] == last["learning_rates"]["unet"] == 2e-4
    assert (last["step"], last["grad_norm"], last["images_per_second"]) == (2, 0.5, 16.0)


def test_what_is_not_finite_is_null_and_forgotten(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path, 0) as metrics:
        metrics.add(progress(1, math.nan, grad_norm=math.inf, seconds=0.0))
        metrics.add(progress(2, 0.5))
    assert "NaN" not in path.read_text()
    first, second = lines(path)
    assert [first[key] for key in ("loss", "loss_smoothed", "grad_norm", "images_per_second")] == [None] * 4
    assert second["loss_smoothed"] == 0.5


def test_a_resumed_file_is_that_of_an_unbroken_run(tmp_path):
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    with MetricsFile(whole, 0) as metrics:
        for step in range(1, 21):
            metrics.add(progress(step, math.nan if step == 3 else None))
    text = whole.read_text().splitlines(keepends=True)
    broken.write_text("".join(text[:14]) + text[14][:30])  # 14 steps, and a line that a crash tore
    with MetricsFile(broken, 11) as metrics:
        assert [line["step"] for line in lines(broken)] == list(range(1, 12))
        for step in range(12, 21):
            metrics.add(progress(step))
    assert broken.read_text() == whole.read_text()
    assert not list(tmp_path.glob(".*"))


def test_a_new_run_starts_a_new_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("something else\n")
    with MetricsFile(path, 0) as metrics:
        metrics.add(progress(1))
    assert len(lines(path)) == 1


# --- TensorBoard


def read_board(folder) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    return events


def test_the_board_holds_the_numbers(tmp_path):
    picture = Image.new("RGB", (6, 4), (10, 20, 30))
    with Board(tmp_path, 0) as board:
        board.text("config", "lora_rank: 8\nnoise:\n  noise_offset: 0.1")
        board.picture("samples", picture, 0)
        board.add(progress(1, 0.5), 0.75)
    events = read_board(tmp_path)
    got = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
    assert got == pytest.approx(
        {
            "loss/raw": 0.5,
            "loss/smoothed": 0.75,
            "gradient_norm": 0.5,
            "speed/images_per_second": 16.0,
            "learning_rate/unet": 2e-4,
            "learning_rate/text_encoder": 1e-4,
        }
    )
    shown = Image.open(io.BytesIO(events.Images("samples")[0].encoded_image_string))
    assert apart(shown.convert("RGB"), picture) == 0
    text = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "\n      noise_offset: 0.1" in text


@pytest.mark.parametrize(("start", "expected"), [(2, [1, 2, 3]), (0, [3])])
def test_the_board_hides_what_was_logged_beyond_the_checkpoint(tmp_path, start, expected):
    with Board(tmp_path, 0) as board:
        for step in range(1, 6):
            board.add(progress(step), 1.0)
    with Board(tmp_path, start) as board:
        board.add(progress(3, 7.0), 1.0)
    losses = read_board(tmp_path).Scalars("loss/raw")
    assert [event.step for event in losses] == expected
    assert losses[-1].value == 7.0


# --- the terminal


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_one_bar_and_whole_lines(monkeypatch):
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(sys, "stdout", shown)
    with bar(100, 40) as steps:
        steps.advance(progress(41, seconds=0.5), 0.1234)
        say("saved a file")
        steps.advance(progress(42, seconds=8.0), 0.1234)
    text = shown.getvalue()
    assert "42/100" in text
    assert "loss 0.1234" in text
    assert "\nsaved a file\n" in text.replace("\r", "\n")
    assert text.count("\n") == 2  # the line, and the end of the bar


@pytest.mark.parametrize(("seconds", "speed"), [(0.5, "8.0 images/s"), (8.0, "8.0 s/step"), (0.0, "images/s")])
def test_a_log_file_gets_few_lines(capsys, seconds, speed):
    with bar(1000, 10) as steps:
        for step in range(11, 1001):
            steps.advance(progress(step, seconds=seconds), 0.1234)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("step 1000/1000   loss 0.1234")
    assert speed in err
    assert err.count("\n") == 1


def test_what_is_said_goes_to_stdout(capsys):
    say("hello")
    assert capsys.readouterr() == ("hello\n", "")


# --- the contact sheet

COLOURS = [(200, 10, 10), (10, 200, 10), (10, 10, 200), (200, 10, 200), (10, 200, 200), (200, 200, 10)]


def places(sheet: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the pixels that have exactly this colour; all of the rectangle must."""
    ys, xs = np.nonzero((np.asarray(sheet) == colour).all(axis=-1))
    box = int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
    assert len(xs) == (box[2] - box[0]) * (box[3] - box[1])
    return box


@pytest.mark.parametrize(
    ("size", "shown"), [((128, 128), (128, 128)), ((1024, 768), (256, 192)), ((512, 512), (256, 256))]
)
def test_every_picture_is_at_its_place(size, shown):
    pictures = [[Image.new("RGB", size, COLOURS[3 * row + column]) for column in range(3)] for row in range(2)]
    sheet = contact_sheet(pictures, ["a very long prompt " * 40, "b"], ["base", "step 1", "step " * 99], "Title")
    boxes = [[places(sheet, COLOURS[3 * row + column]) for column in range(3)] for row in range(2)]
    assert {(right - left, bottom - top) for line in boxes for left, top, right, bottom in line} == {shown}
    for line in boxes:
        assert [box[0] for box in line] == [boxes[0][0][0] + n * (shown[0] + 4) for n in range(3)]
        assert len({box[1] for box in line}) == 1
    assert boxes[1][0][1] - boxes[0][0][3] == 4
    assert max(boxes[1][2][2:]) < max(sheet.size)


def test_pixels_are_copied_as_they_are():
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    sheet = contact_sheet([[Image.fromarray(pixels)]], [""], [""])
    found = np.asarray(sheet)[28 : 28 + 96, 28 : 28 + 128]
    assert (found == pixels).all()
    assert sheet.size == (28 + 128 + 28, 28 + 96 + 28)


def test_words_stay_beside_the_pictures():
    blue = Image.new("RGB", (128, 128), COLOURS[2])
    words = "a red house by the sea, " * 30 + "w" * 300
    sheet = contact_sheet([[blue], [None]], [words, words], [words], words[:14])
    left, top, right, bottom = places(sheet, COLOURS[2])
    assert (right - left, bottom - top) == (128, 128)
    pixels = np.asarray(sheet).astype(int)
    dark = pixels.max(axis=-1) < 150
    assert dark[:, :left].any()  # words
    assert dark[:top].any()
    assert not dark[top:, left - 4 : left].any()  # and air between
    assert not dark[top - 2 : top].any()
    assert not dark[:, right:].any()
    assert pixels[bottom + 60, left + 60].tolist() == [0xED, 0xEB, 0xE5]  # the place of the missing picture


# --- previews


@pytest.fixture
def previews(tmp_path) -> Previews:
    return Previews(tiny.sd15(), ["a red house", "a cat"], 5, tmp_path / "samples", seed=3, size=(64, 64), steps=2)


def names(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))


def heads(previews: Previews, sheet: Image.Image) -> int:
    """How many columns of pictures a sheet has, by its width."""
    one = contact_sheet([[Image.new("RGB", (64, 64))]] * 2, previews.prompts, ["base"])
    return 1 + (sheet.width - one.width) // 68


def test_previews_are_due_before_training_and_then_every_so_often(previews):
    assert [step for step in range(12) if previews.due(step)] == [0, 5, 10]
    previews.every = 0
    assert not previews.due(0)


def test_previews_show_only_what_training_changed(previews):
    noise = torch.get_rng_state()
    previews.draw(0)
    previews.draw(5)
    for adapter in tiny.adapted_sd15(previews.pipe).values():
        assert not adapter.training
    sheet = previews.draw(10)
    assert torch.equal(torch.get_rng_state(), noise)
    assert sheet is not None
    folder = previews.folder
    steps = ["step-000000", "step-000005", "step-000010"]
    assert names(folder) == ["sheet.png", *(f"{step}/{name}" for step in steps for name in ("01.png", "02.png"))]
    base, same, changed = (Image.open(folder / step / "02.png") for step in steps)
    assert apart(base, same) == 0
    assert apart(base, changed) > 5
    assert heads(previews, sheet) == 3
    assert apart(Image.open(folder / "sheet.png"), sheet) == 0
    assert base.info["parameters"] == "a cat\nSteps: 2, CFG scale: 7, Seed: 4, Size: 64x64"


def test_the_newest_picture_is_that_of_the_last_step(previews):
    assert previews.newest() is None
    previews.draw(0)
    tiny.adapted_sd15(previews.pipe)
    previews.draw(5)
    (previews.folder / "step-000010").mkdir()  # a preview that failed
    newest = previews.newest()
    assert newest is not None
    assert apart(newest, Image.open(previews.folder / "step-000005" / "01.png")) == 0
    assert apart(newest, Image.open(previews.folder / "step-000000" / "01.png")) > 5


def test_the_sheet_survives_a_resume_and_forgets_what_lies_beyond(previews):
    for step in (0, 5, 10):
        previews.draw(step)
    again = Previews(tiny.sd15(), previews.prompts, 5, previews.folder, seed=3, size=(64, 64), steps=2)
    sheet = again.draw(5)
    assert sheet is not None
    assert heads(previews, sheet) == 2


def test_pictures_of_other_prompts_are_not_shown_as_these(previews):
    previews.draw(0)
    other = Previews(previews.pipe, ["two boats", "a cat"], 5, previews.folder, seed=3, size=(64, 64), steps=2)
    sheet = other.draw(5)
    assert sheet is not None
    empty = (np.asarray(sheet) == (0xED, 0xEB, 0xE5)).all(axis=-1)
    assert empty.sum() == 64 * 64


def test_a_long_run_keeps_a_readable_sheet(previews):
    previews.draw(0)
    for step in range(1, 40):
        (previews.folder / f"step-{step:06d}").mkdir()
    sheet = previews.draw(40)
    assert sheet is not None
    assert heads(previews, sheet) == COLUMNS


def test_a_failing_preview_is_told_once_and_stops_nothing(previews, capsys):
    previews.folder.write_text("a file where the folder should be")
    assert previews.draw(0) is None
    assert previews.draw(5) is None
    assert capsys.readouterr().out.count("no preview") == 1


def test_our_own_mistakes_are_not_hidden(previews):
    previews.size = (60, 60)
    with pytest.raises(ValueError, match="divisible by 8"):
        previews.draw(0)
