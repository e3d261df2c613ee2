"""Previews stay comparable over a run and its resumes, and the contact sheet shows every picture at its place."""

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from test_sampling import apart

from patina.families.sd15 import SD15
from patina.watch.previews import COLUMNS, Previews
from patina.watch.sheet import contact_sheet

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
    for adapter in tiny.adapted(SD15, previews.pipe).values():
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
    tiny.adapted(SD15, previews.pipe)
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
