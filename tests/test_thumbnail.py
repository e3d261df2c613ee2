"""The picture beside a LoRA is where every web UI looks, is kept up to date, and never takes the place of a user's."""

import pytest
from PIL import Image

from patina.watch.thumbnail import EDGE, save_thumbnail

RED, BLUE = (Image.new("RGB", (1024, 512), colour) for colour in ((200, 10, 10), (10, 10, 200)))


def test_it_is_small_and_a_later_one_replaces_it(tmp_path, capsys):
    lora = tmp_path / "style.safetensors"
    for picture in (RED, BLUE):
        save_thumbnail(picture, lora)
        with Image.open(tmp_path / "style.png") as saved:
            assert saved.format == "PNG"
            assert saved.size == (EDGE, EDGE // 2)
            assert saved.getpixel((0, 0)) == picture.getpixel((0, 0))
    assert [path.name for path in tmp_path.iterdir()] == ["style.png"]
    assert RED.size == (1024, 512)
    assert not capsys.readouterr().out


@pytest.mark.parametrize("name", ["style.png", "style.preview.png", "style.jpg", "style.webp", "style.preview.jpeg"])
def test_a_picture_of_the_users_stays_and_is_not_put_behind(name, tmp_path, capsys):
    BLUE.save(tmp_path / name)
    before = (tmp_path / name).read_bytes()
    save_thumbnail(RED, tmp_path / "style.safetensors")
    assert (tmp_path / name).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert f"{name} is your own picture" in capsys.readouterr().out


def test_what_is_no_picture_stays_too_and_another_loras_is_nobodys_business(tmp_path):
    (tmp_path / "style.png").write_bytes(b"not a picture")
    BLUE.save(tmp_path / "style-000002.png")
    save_thumbnail(RED, tmp_path / "style.safetensors")
    assert (tmp_path / "style.png").read_bytes() == b"not a picture"
    (tmp_path / "style.png").unlink()
    save_thumbnail(RED, tmp_path / "style.safetensors")
    assert {path.name for path in tmp_path.iterdir()} == {"style.png", "style-000002.png"}
