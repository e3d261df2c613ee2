"""What a run shows is what happened: each number once, over any number of resumes."""

import io
import json
import math
import sys

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_sampling import apart

from patina.progress import Progress
from patina.watch.board import Board
from patina.watch.console import bar, say
from patina.watch.metrics import MetricsFile
from patina.watch.smoothed import Smoothed

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
    assert [key for key in last if key != "memory"] == [*KEYS, "images_per_second"]
    assert last["learning_rate"] == last["learning_rates"]["unet"] == 2e-4
    assert (last["step"], last["grad_norm"], last["images_per_second"]) == (2, 0.5, 16.0)


def test_memory_is_told_where_a_gpu_is_used(tmp_path):
    held = torch.zeros(1 << 20, device="cuda" if torch.cuda.is_available() else "cpu")
    with MetricsFile(tmp_path / "metrics.jsonl", 0) as metrics:
        metrics.add(progress(1))
    (line,) = lines(tmp_path / "metrics.jsonl")
    assert ("memory" in line) == held.is_cuda
    assert line.get("memory", held.nbytes) >= held.nbytes


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
