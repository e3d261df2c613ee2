"""tools/check_data.py says what is wrong with pictures and captions, and changes nothing of them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from toolbox import load_tool

from patina.check.wording import BLOCK, caption_findings
from patina.demo.folders import save_pictures
from patina.errors import PatinaError

check_data = load_tool("check_data").main
NUMBERS = range(12)


def drawn(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """Soft blots, different for each seed, with grain."""
    rng = np.random.default_rng(seed)
    blots = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = rng.integers(-20, 21, (size[1], size[0], 3))
    return Image.fromarray((np.asarray(blots) + grain).clip(0, 255).astype(np.uint8))


def add(folder: Path, name: str, picture: Image.Image, caption: str | None = None, **options) -> Path:
    picture.save(folder / name, **options)
    said = f"sks, thing called {Path(name).stem} on a table" if caption is None else caption
    (folder / name).with_suffix(".txt").write_text(said, encoding="utf-8")
    return folder / name


@pytest.fixture
def clean(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for number in NUMBERS:
        add(folder, f"{number}.png", drawn(number))
    return folder


def told(folder: Path, *words: str) -> list[str]:
    return [str(folder), "--resolution", "64", "--trigger", "sks", "--strict", *words]


def test_a_clean_set_raises_no_doubt(clean, capsys):
    assert check_data(told(clean)) == 0
    out = capsys.readouterr().out
    assert "warning" not in out
    assert "12 of 64x64" in out
    assert out.endswith("can be trained on\n")


@pytest.mark.parametrize("name", ["x.png", "0.txt", "metadata.csv"])
def test_a_link_out_of_the_folder_is_named_and_not_followed(clean, tmp_path, capsys, name):
    elsewhere = tmp_path / name
    add(tmp_path, "x.png", drawn(99), "sks, secret")
    (tmp_path / "metadata.csv").write_text("filename,prompt\n1.png,secret\n", encoding="utf-8")
    (tmp_path / "0.txt").write_text("secret", encoding="utf-8")
    (clean / name).unlink(missing_ok=True)
    (clean / name).symlink_to(elsewhere)
    assert check_data([*told(clean), "--output", str(tmp_path / "report")]) == 2
    out = capsys.readouterr().out
    assert f"{name}: leads out of the folder; put the file itself there" in out
    assert "secret" not in out + (tmp_path / "report" / "report.html").read_text(encoding="utf-8")


def test_a_captioner_finds_pictures_that_show_the_same(tmp_path, capsys):
    """The embedded captioner knows the demo's things: a brighter cut-out is the same to it, other things are not."""
    captioner = Path(__file__).resolve().parents[1] / "data" / "demo" / "captioner"
    save_pictures(tmp_path / "set", "plain", 12, 1, ((128, 128),))
    with Image.open(tmp_path / "set" / "0004.png") as image:
        cut = ImageEnhance.Brightness(image.crop((4, 4, 124, 124))).enhance(1.2)
        cut.save(tmp_path / "set" / "x.png")
    assert check_data([str(tmp_path / "set"), "--resolution", "64", "--captioner", str(captioner)]) == 2
    out = capsys.readouterr().out
    assert (
        "warning: pictures that show nearly the same: 1\n  x.png: shows nearly what 0004.png shows (cosine 0.9" in out
    )
    assert "look like another" not in out


def resaved(folder: Path) -> None:
    add(folder, "x.jpg", drawn(3), quality=80)


def mirrored(folder: Path) -> None:
    add(folder, "x.jpg", ImageOps.mirror(drawn(3)), quality=80)


def copied(folder: Path) -> None:
    add(folder, "x.png", drawn(3))


def animated(folder: Path) -> None:
    frames = [drawn(seed) for seed in (50, 51, 52)]
    add(folder, "x.webp", frames[0], save_all=True, append_images=frames[1:], lossless=True)


def lying(folder: Path) -> None:
    add(folder, "x.jpg", drawn(50), format="PNG")


def tiny(folder: Path) -> None:
    add(folder, "x.png", drawn(50, (32, 32)).filter(ImageFilter.SHARPEN))


def speck(folder: Path) -> None:
    add(folder, "x.png", drawn(50, (7, 6)).filter(ImageFilter.SHARPEN))


def strip(folder: Path) -> None:
    add(folder, "x.png", drawn(50, (384, 96)))


def flat(folder: Path) -> None:
    add(folder, "x.png", Image.new("RGB", (64, 64), "grey"))


def blurry(folder: Path) -> None:
    add(folder, "x.png", drawn(50).filter(ImageFilter.GaussianBlur(2)))


def said(caption: str):
    return lambda folder: add(folder, "x.png", drawn(50), caption)


@pytest.mark.parametrize(
    ("spoil", "title", "line"),
    [
        (copied, "repeat another byte for byte", "x.png: is the same file as 3.png"),
        (resaved, "look like another:", "x.jpg: looks like 3.png"),
        (mirrored, "mirror image", "x.jpg: looks like the mirror image of 3.png"),
        (animated, "several frames", "x.webp: has 3 frames"),
        (lying, "ending does not say", "x.jpg: is PNG"),
        (tiny, "less than half", "x.png: 32 x 32, trained at 32 x 32"),
        (speck, "scales up", "x.png: 7 x 6, scaled up 1.3 times to 8 x 8"),
        (strip, "cuts off much", "x.png: 384 x 96"),
        (flat, "less contrast", "x.png: has hardly any contrast"),
        (blurry, "less detail", "x.png: has far less detail"),
        (said(""), "without a caption", "x.png: has no caption"),
        (said("sks, thing called 3 on a table"), "repeat another:", "x.png: is captioned as 3.png"),
        (said("sks, " + "cat " * 76), "longer than CLIP", "x.png: 78 tokens"),
        (said("a cat, which sks drew"), "do not begin with the trigger", "has it twice"),
        (said("sks, a painting of a cat"), "words of style", 'x.png: says "painting of"'),
        (lambda folder: (folder / "x.txt").write_text("sks, gone"), "picture is missing", "x.txt: has no picture"),
    ],
)
def test_a_rule_fires_on_what_it_is_for_and_no_other_does(clean, capsys, spoil, title, line):
    spoil(clean)
    assert check_data(told(clean)) == 1
    out = capsys.readouterr().out
    assert line in out
    assert [one for one in out.splitlines() if one.startswith("warning")] == [
        one for one in out.splitlines() if one.startswith("warning") and title in f"{one}" and one.endswith(": 1")
    ]
    assert check_data(told(clean)[:-1]) == 0


@pytest.mark.parametrize("bytes_", [b"", b"not a picture", None])
def test_an_unreadable_picture_stops_training(clean, capsys, bytes_):
    path = add(clean, "x.png", drawn(50))
    path.write_bytes(path.read_bytes()[:2000] if bytes_ is None else bytes_)
    assert check_data(told(clean)) == 2
    assert "error: pictures that cannot be read: 1\n  x.png: " in capsys.readouterr().out


def test_rows_without_file_and_files_without_row(clean, capsys):
    (clean / "11.txt").unlink()
    rows = [f'{number}.png,"sks, thing called {number}"' for number in range(11)]
    (clean / "metadata.csv").write_text("\n".join(["filename,prompt", *rows, 'gone.png,"sks, lost"']), encoding="utf-8")
    assert check_data(told(clean)) == 2
    out = capsys.readouterr().out
    assert "error: captions whose picture is missing: 1\n  gone.png: is named in metadata.csv" in out
    assert "11.png: has no caption" in out


def test_a_table_that_cannot_be_read_is_a_finding(clean, capsys):
    (clean / "metadata.csv").write_text("wrong,columns\n0.png,cat", encoding="utf-8")
    assert check_data(told(clean)) == 2
    assert "metadata.csv, line 1: no column is called" in capsys.readouterr().out


def test_nothing_in_the_folder_changes_and_the_report_is_whole(clean, tmp_path):
    flat(clean)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in clean.iterdir()}
    output = tmp_path / "report"
    assert check_data(told(clean, "--output", str(output))) == 1
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in clean.iterdir()} == before
    page = (output / "report.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/jpeg;base64,') == 1
    assert "64 x 64</td><td>13" in page
    with Image.open(output / "sheet.png") as sheet:
        assert sheet.width > 10 * 64
    with pytest.raises(PatinaError, match="is there already"):
        check_data(told(clean, "--output", str(output)))
    with pytest.raises(PatinaError, match="lies in the folder of pictures"):
        check_data(told(clean, "--output", str(clean / "report")))


def test_hostile_names_and_captions_are_shown_and_never_obeyed(clean, tmp_path, capsys):
    name = "<script>alert(1)<\x1b[31m\n&.png"
    add(clean, name, drawn(3), "<img src=x>\x1b]0;title\x07, oil painting, <b>by\x1b[2J")
    check_data(told(clean, "--output", str(tmp_path / "report")))
    shown, page = capsys.readouterr().out, (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "\x1b" not in shown + page
    assert "\x07" not in shown + page
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert all(line.startswith((str(clean), "  ", "warning", "written", "can")) for line in shown.splitlines())


def test_a_config_names_pictures_trigger_and_shapes(clean, tmp_path, capsys):
    config = tmp_path / "run.yaml"
    lines = [f"train_data_dir: {clean}", "base_model: m", "output_dir: out", "resolution: 128", "trigger_word: zwx"]
    config.write_text("\n".join(lines), encoding="utf-8")
    assert check_data([str(config)]) == 0
    out = capsys.readouterr().out
    assert "12 of 64x64" in out
    assert "less than half of the resolution's pixels: 12" in out
    assert 'does not begin with "zwx"' in out
    config.write_text("\n".join([*lines, "dataset: {upscale: true}"]), encoding="utf-8")
    assert check_data([str(config)]) == 0
    assert "12 of 128x128" in capsys.readouterr().out
    with pytest.raises(PatinaError, match="--trigger: is for folders"):
        check_data([str(config), "--trigger", "sks"])
    with pytest.raises(PatinaError, match="--columns: is for texts"):
        check_data([str(config), "--columns", "a=b"])


def test_the_page_has_all_folders_of_a_config(clean, tmp_path, capsys):
    others = tmp_path / "reg"
    others.mkdir()
    add(others, "flat.png", Image.new("RGB", (64, 64), "grey"), "a thing")
    add(others, "copy.png", Image.new("RGB", (64, 64), "grey"), "an oil painting")
    config, output = tmp_path / "run.yaml", tmp_path / "report"
    lines = [f"train_data_dir: {clean}", "base_model: m", "output_dir: out", "resolution: 64", "trigger_word: sks"]
    config.write_text("\n".join([*lines, f"dataset: {{reg_dir: {others}}}"]), encoding="utf-8")
    assert check_data([str(config), "--output", str(output), "--strict"]) == 1
    page = (output / "report.html").read_text(encoding="utf-8")
    first, second = page.split("<h1>")[1:]
    assert first.startswith(f"{clean}</h1><p>12 pictures")
    assert "warning" not in first
    assert second.startswith(f"{others}</h1><p>2 pictures")
    assert second.count('src="data:image/jpeg;base64,') == 2
    assert "<td>flat.png</td><td>is the same file as copy.png" in second
    assert capsys.readouterr().out.endswith(f"written: {output / 'report.html'}\n")
    with Image.open(output / "sheet.png") as sheet:
        assert sheet.height > 2 * 64  # 14 pictures are two rows
    with pytest.raises(PatinaError, match="lies in the folder of pictures"):
        check_data([str(config), "--output", str(others / "report")])


def test_the_captions_of_a_picture_that_a_run_reads_are_looked_at(clean, tmp_path, capsys):
    """With random lines all of them, with joined ones their sum; without a word on it, the first."""
    picture = sorted(clean.glob("*.png"))[0]
    for path in clean.glob("metadata.*"):
        path.unlink()
    for number, path in enumerate(sorted(clean.glob("*.png"))):
        path.with_suffix(".txt").write_text(f"sks, thing {number}")
    said = [
        "sks, thing 0",
        "thing 1, an oil painting",
        "sks, thing 1",
        "cat " * 50,
        "dog " * 50,
    ]
    picture.with_suffix(".txt").write_text("\n".join(said))
    marked = sorted(clean.glob("*.png"))[2]
    marked.with_suffix(".txt").write_text("a dog near [trigger]")
    config = tmp_path / "run.yaml"
    lines = [f"train_data_dir: {clean}", "base_model: m", "output_dir: out", "resolution: 64", "trigger_word: sks"]

    def told(kind: str) -> list[str]:
        config.write_text("\n".join([*lines, f"dataset: {{caption_lines: {kind}}}"]), encoding="utf-8")
        assert check_data([str(config)]) == 0
        out = capsys.readouterr().out
        assert marked.name not in out
        return [line.strip() for line in out.splitlines() if picture.name in line]

    assert told("first") == []
    other = sorted(clean.glob("*.png"))[1].name
    found = "\n".join(told("random"))
    assert f"{other}: is captioned as {picture.name} is" in found
    assert 'says "oil painting"' in found
    assert found.count('does not begin with "sks"') == 1
    assert "tokens, where" not in found
    (long,) = [line for line in told("joined") if "tokens, where" in line]
    assert long.startswith(f"{picture.name}: 1")


def test_captions_are_tokenised_a_block_at_a_time_and_none_is_passed_over():
    words = {at: "cat " * 76 for at in (0, BLOCK - 1, BLOCK, 2 * BLOCK)}
    captions = {f"{at}.png": words.get(at, f"thing {at}") for at in range(2 * BLOCK + 1)}
    long = [one.name for one in caption_findings(list(captions), captions, None) if one.rule == "long caption"]
    assert long == [f"{at}.png" for at in words]


def test_a_picture_lying_on_its_side_is_measured_upright(clean, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6
    add(clean, "x.jpg", drawn(50, (192, 96)), exif=exif)
    check_data([str(clean), "--resolution", "64"])
    assert "1 of 48x80" in capsys.readouterr().out


def test_an_animation_whose_end_is_missing_is_still_a_picture(clean, capsys):
    frames = [drawn(seed) for seed in (50, 51, 52)]
    path = add(clean, "x.gif", frames[0], save_all=True, append_images=frames[1:])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    assert check_data(told(clean)) == 1
    assert "x.gif: has " in capsys.readouterr().out


def test_a_folder_of_texts_is_still_checked_as_texts(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"question": "q", "answer": "yes"}', encoding="utf-8")
    drawn(1).save(tmp_path / "figure.png")
    assert check_data([str(tmp_path)]) == 0
    assert "1 rows" in capsys.readouterr().out
    with pytest.raises(PatinaError, match="--trigger: is for pictures"):
        check_data([str(tmp_path), "--trigger", "sks"])


def test_pictures_of_equal_outline_and_other_content_are_no_repeats(clean, capsys):
    ramp = np.tile(np.linspace(0, 120, 64), (64, 1))
    for number, light in enumerate((0, 100)):
        levels = np.stack([ramp + light] * 3, axis=2).astype(np.uint8)
        add(clean, f"x{number}.png", Image.fromarray(levels))
    check_data(told(clean))
    assert "look like another" not in capsys.readouterr().out
