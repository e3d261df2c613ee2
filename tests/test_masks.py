"""Masks are cut as their pictures are, and weigh the loss as worked out by hand."""

from itertools import islice
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image, ImageOps
from test_run import SMALL, losses, pictures

from patina import configfile
from patina.data import masks
from patina.data.buckets import Buckets, fit
from patina.data.captions import Captioned
from patina.data.dataset import Item, epochs, load_items
from patina.data.folders import captioned_pictures
from patina.data.images import mask_file, picture_size
from patina.data.masks import Masking
from patina.data.variants import ALIKE, Variety
from patina.errors import PatinaError
from patina.families.sd15 import SD15
from patina.objective import Noised, ddpm, loss_sum
from patina.run import run
from patina.tasks.image import ImageTask

FILES = Masking("files", 0.1)


@pytest.fixture(scope="module")
def vae():
    return tiny.sd15().vae


@pytest.fixture
def picture(tmp_path) -> Path:
    """136 x 64 pixels, of which the left quarter counts."""
    Image.linear_gradient("L").resize((136, 64)).convert("RGB").save(tmp_path / "a.jpg")
    left(136, 64).save(mask_file(tmp_path / "a.jpg"))
    return tmp_path / "a.jpg"


def left(width: int, height: int) -> Image.Image:
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, (0, 0, width // 4, height))
    return mask


def load(paths: list[Path], vae, masking: Masking, *, buckets: bool = True, variety: Variety = ALIKE) -> list[Item]:
    how = {"buckets": Buckets(64, 8, 2 if buckets else 1), "workers": 2}
    captioned = [Captioned(path, path.stem, variety=variety) for path in paths]
    return load_items(captioned, vae, **how, cache_dir=paths[0].parent / "cache", masking=masking)


def test_a_cut_elsewhere_has_its_own_part_of_the_mask_and_may_have_none_of_it(vae, picture) -> None:
    mask = Image.new("L", (136, 64))
    mask.paste(255, (0, 0, 50, 64))
    mask.save(mask_file(picture))
    variety = Variety(flip=True, crop=True, number=3)
    (item,) = load([picture], vae, FILES, buckets=False, variety=variety)
    _, first, last, _, mirrored, _ = (latent.mask for latent in item.latents)
    assert first is not None
    assert last is not None
    assert mirrored is not None
    width = item.shape[2]  # of 64 pixels, of which the first 50 count
    assert first[0, 0].tolist() == pytest.approx(
        [min(max(50 / 64 * width - at, 0.1), 1) for at in range(width)], abs=0.03
    )
    assert (last == FILES.least).all()
    assert torch.equal(mirrored, first.flip(-1))


def mask_of(item: Item) -> torch.Tensor:
    mask = item.latents[0].mask
    assert mask is not None
    return mask


def test_a_mask_is_cut_reduced_and_turned_with_its_picture(vae, picture) -> None:
    (whole,) = load([picture], vae, FILES, variety=Variety(flip=True))
    plain, mirrored = (latent.mask for latent in whole.latents)
    _, height, width = whole.shape
    start, _, end, _ = fit((136, 64), Buckets(64, 8)).box
    edge = (34 - start) / (end - start) * width  # 1.8: within the second place
    wanted = [min(max(edge - at, 0.1), 1.0) for at in range(width)]
    assert plain is not None
    assert mirrored is not None
    torch.testing.assert_close(
        plain, torch.tensor(wanted).expand(1, height, width), atol=0.02, rtol=0
    )  # by whole pixels
    assert torch.equal(mirrored, plain.flip(-1))
    left(136, 64).transpose(Image.Transpose.ROTATE_180).save(mask_file(picture))
    (turned,) = load([picture], vae, FILES)
    torch.testing.assert_close(mask_of(turned), plain.flip(-1), atol=1 / 255, rtol=0)
    half = Image.new("L", (136, 64), 255)
    half.paste(0, (68, 0, 136, 64))
    half.save(mask_file(picture))
    (square,) = load([picture], vae, FILES, buckets=False)  # the middle of the picture alone
    assert mask_of(square)[0, 0].tolist() == pytest.approx([1.0] * 4 + [0.1] * 4)


def test_a_mask_is_kept_under_its_content(vae, picture, monkeypatch) -> None:
    (first,) = load([picture], vae, FILES)
    opened = []
    kept = masks.open_image
    monkeypatch.setattr(masks, "open_image", lambda path: opened.append(path) or kept(path))
    (again,) = load([picture], vae, FILES)
    assert torch.equal(mask_of(first), mask_of(again))
    assert not opened
    ImageOps.invert(left(136, 64)).save(mask_file(picture))
    (other,) = load([picture], vae, FILES)
    assert opened == [mask_file(picture)]
    assert not torch.equal(mask_of(first), mask_of(other))


def test_transparency_is_a_mask_and_what_has_none_counts_whole(vae, tmp_path) -> None:
    image = Image.new("RGB", (64, 64), "red")
    image.save(tmp_path / "solid.png")
    image.putalpha(left(64, 64))
    image.save(tmp_path / "clear.png")
    clear, solid = load([tmp_path / "clear.png", tmp_path / "solid.png"], vae, Masking("alpha", 0.0))
    assert mask_of(clear)[0, 0].tolist() == [1.0] * 2 + [0.0] * 6
    assert bool((mask_of(solid) == 1).all())
    assert masks.note([mask_of(clear), mask_of(solid)], "alpha").startswith("masks: 1 of 2 pictures have none")
    with pytest.raises(PatinaError, match=r"^dataset\.masks: is alpha, but there is no picture that is transparent"):
        masks.note([mask_of(solid)], "alpha")
    (off,) = load([tmp_path / "clear.png"], vae, masks.UNMASKED)
    assert off.latents[0].mask is None
    assert "mask" not in next(epochs([off], 1, 0, 0))
    (batch,) = islice(epochs([clear, solid], 2, 0, 0), 1)
    assert batch["mask"].shape == (2, 1, 8, 8)


def test_a_mask_that_cannot_be_used_is_told(vae, picture) -> None:
    mask = mask_file(picture)
    left(64, 64).save(mask)
    with pytest.raises(PatinaError, match=r"a-masklabel\.png: the mask is 64x64 and its picture 136x64; save it"):
        load([picture], vae, FILES)
    Image.new("L", (136, 64)).save(mask)
    with pytest.raises(PatinaError, match=r"a-masklabel\.png: the mask is black in all of the part"):
        load([picture], vae, FILES)
    mask.write_bytes(b"")
    with pytest.raises(PatinaError, match=r"a-masklabel\.png: the file is empty"):
        load([picture], vae, FILES)


def test_masks_are_no_training_pictures(picture) -> None:
    picture.with_suffix(".txt").write_text("a picture")
    assert [pair.path for pair in captioned_pictures(picture.parent, None, str)] == [picture]


def test_a_mask_is_not_read_through_a_link_out_of_the_folder(picture, tmp_path) -> None:
    (tmp_path / "set").mkdir()
    moved = picture.rename(tmp_path / "set" / "a.jpg")
    moved.with_suffix(".txt").write_text("a picture")
    mask_file(moved).symlink_to(mask_file(picture))
    with pytest.raises(PatinaError, match=r"a-masklabel\.png: is a link"):
        captioned_pictures(moved.parent, None, str)


def test_the_loss_is_the_one_worked_out_by_hand() -> None:
    target, ones = torch.zeros(2, 1, 2, 2), torch.ones(2)
    predicted = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]], [[[1.0, 1.0], [1.0, 1.0]]]])
    mask = torch.tensor([[[[1.0, 0.5], [0.0, 0.0]]], [[[1.0, 1.0], [1.0, 1.0]]]])
    noised = Noised(target, ones, target, torch.tensor([2.0, 1.0]))
    assert float(loss_sum(predicted, noised, mask)) == 2 * (1 + 0.5 * 4) / 4 + 1
    assert torch.equal(loss_sum(predicted, noised, torch.ones_like(mask)), loss_sum(predicted, noised))


def test_what_a_mask_leaves_out_has_no_part_in_the_gradient() -> None:
    """The denoiser's own answer there may be anything, and is not pulled anywhere."""
    pipe = tiny.sd15()
    task = ImageTask(SD15, pipe, ddpm(pipe.scheduler), ("unet",), seed=3)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :2] = 1
    spread = {"mean": torch.randn(1, 4, 8, 8), "std": torch.ones(1, 4, 8, 8), "captions": ["x"], "epoch": 0}
    batch = {**spread, "places": [0], "time_ids": torch.zeros(1, 6), "names": ["x"], "mask": mask}
    answers = []
    pipe.unet.register_forward_hook(lambda *call: answers.append(call[-1][0]))
    prepared = task.prepare(batch)
    loss = task(prepared)
    answer = answers[0]
    answer.retain_grad()
    loss.backward()
    assert answer.grad is not None
    assert bool((answer.grad[..., 2:] == 0).all())
    assert bool((answer.grad[..., :2] != 0).all())
    assert [part["mask"].shape for part in task.split(prepared, 1)] == [mask.shape]


def test_a_run_with_masks_learns_from_them(tmp_path, monkeypatch) -> None:
    pictures(tmp_path / "pictures", count=3)
    tiny.save_sd15(tmp_path / "base")
    (tmp_path / "run.yaml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)

    def trained(name: str, *words: str) -> list[float]:
        given = ["dataset.cache_dir=cache", f"output_dir={name}", "max_steps=2", "validation.split=0.3", *words]
        return losses(run(configfile.load(Path("run.yaml"), given)).parent)

    with pytest.raises(PatinaError, match=r"no NAME-masklabel\.png beside a picture"):
        trained("bare", "masked_training=true")
    for path in list(Path("pictures").glob("*.png")):
        left(*picture_size(path)).save(mask_file(path))
    plain = trained("plain")
    masked = trained("masked", "masked_training=true", "unmasked_weight=0")
    assert all(ours < theirs / 2 for ours, theirs in zip(masked, plain, strict=True))
