"""A picture's weight is read from its table or refused by line, and is a factor of its part of the loss."""

import json
from pathlib import Path

import pytest
import tiny
import torch
from test_run import SMALL, losses, pictures

from patina import configfile
from patina.data.captions import find_captions, table_rows
from patina.data.dataset import Item, Latent, batch_of, report
from patina.errors import PatinaError
from patina.families.sd15 import SD15
from patina.objective import Noised, ddpm, loss_sum
from patina.run import run
from patina.task import Batch
from patina.tasks.image import ImageTask


@pytest.mark.parametrize(
    ("name", "text", "weights"),
    [
        ("t.csv", "filename,prompt,weight\na.png,x,0.5\nb.png,y,\nc.png,z, 2 \n", [0.5, 1, 2]),
        ("t.csv", 'Weight,filename,prompt\n0,a.png,"x, y"\n', [0]),
        ("t.csv", "filename,prompt\na.png,x\n", [1]),
        ("t.jsonl", '{"path": "a", "text": "x", "Weight": 3}\n{"path": "b", "text": "y", "weight": null}', [3, 1]),
        ("t.json", '{"a.png": {"caption": "x", "weight": 0.25}, "b.png": "y"}', [0.25, 1]),
    ],
)
def test_a_table_says_what_pictures_weigh(tmp_path, name, text, weights) -> None:
    (tmp_path / name).write_text(text)
    assert [row.weight for row in table_rows(tmp_path / name, tmp_path)] == weights


@pytest.mark.parametrize("written", ["-1", "nan", "inf", "half", "1e999", "true"])
def test_what_is_no_weight_is_refused_by_line(tmp_path, written) -> None:
    (tmp_path / "t.csv").write_text(f"filename,prompt,weight\na.png,x,1\nb.png,y,{written}\n")
    with pytest.raises(PatinaError, match=rf"t\.csv, line 3: weight is '{written}'; write a number from 0 on"):
        table_rows(tmp_path / "t.csv", tmp_path)


@pytest.mark.parametrize("written", ["true", "[1]", '{"a": 1}', '"-1"', "NaN", "1" + "0" * 400])
def test_json_is_refused_too(tmp_path, written) -> None:
    (tmp_path / "t.jsonl").write_text(f'{{"path": "a", "text": "x", "weight": {written}}}')
    with pytest.raises(PatinaError, match=r"t\.jsonl, line 1: weight is "):
        table_rows(tmp_path / "t.jsonl", tmp_path)


def test_a_row_weighs_a_caption_that_stands_beside_the_picture(tmp_path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "a.txt").write_text("a cat")
    (tmp_path / "metadata.csv").write_text("filename,prompt,weight\na.png,,0.5\n")
    (pair,), _ = find_captions([tmp_path / "a.png"], tmp_path, None)
    assert (pair.caption, pair.weight) == ("a cat", 0.5)


def test_each_picture_of_the_loss_is_multiplied() -> None:
    target = torch.zeros(3, 4, 2, 2)
    noised = Noised(target, torch.zeros(3), target, torch.tensor([1.0, 1, 0.5]))
    prediction = torch.stack([torch.full((4, 2, 2), value) for value in (1.0, 2.0, 3.0)])
    weights = torch.tensor([2.0, 0.0, 1.0])
    assert float(loss_sum(prediction, noised, None, weights)) == 2 * 1 + 0 * 4 + 0.5 * 9
    assert float(loss_sum(prediction, noised, torch.full((3, 1, 2, 2), 0.5), weights)) == (2 + 4.5) / 2


def test_a_batch_carries_the_weights_of_its_pictures_into_the_loss() -> None:
    pipe = tiny.sd15()
    task = ImageTask(SD15, pipe, ddpm(pipe.scheduler), ("unet",), seed=3)
    latent = Latent(torch.randn(4, 8, 8), torch.ones(4, 8, 8), (64, 64, 0, 0, 64, 64))

    def item(weight: float) -> Item:
        return Item(Path("a.png"), "x", (64, 64), (latent,), 1, Path("set"), weight)

    def prepared(*weights: float) -> list[Batch]:
        return task.split(task.prepare(batch_of([item(weight) for weight in weights], 0, 0, 0)), 1)

    plain, weighed = prepared(1, 1), prepared(0.5, 3)
    assert [part["factors"].tolist() for part in weighed] == [[0.5], [3.0]]
    with torch.no_grad():
        ours, theirs = ([float(task(part)) for part in parts] for parts in (weighed, plain))
    assert ours == pytest.approx([0.5 * theirs[0], 3 * theirs[1]])
    assert report([item(1), item(0.5), item(3)])[-1] == "2 of them count 0.5 to 3 times in the loss"
    assert report([item(2)])[-1] == "1 of them count 2 times in the loss"
    assert len(report([item(1)])) == 1


def test_a_run_is_weighed_measured_alike_and_refused_with_other_weights(tmp_path, monkeypatch) -> None:
    pictures(tmp_path / "pictures", count=3)
    tiny.save_sd15(tmp_path / "base")
    (tmp_path / "run.yaml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    table = Path("pictures/metadata.csv")
    lines = table.read_text().splitlines()

    def weigh(weight: str) -> None:
        table.write_text("\n".join([lines[0] + ",weight", *(f"{line},{weight}" for line in _quoted(lines[1:]))]) + "\n")

    def trained(name: str, *more: str) -> Path:
        words = ["dataset.cache_dir=cache", f"output_dir={name}", "validation.split=0.3", *more]
        return run(configfile.load(Path("run.yaml"), words)).parent

    weigh("1")
    plain = trained("plain", "max_steps=1")
    weigh("2")
    double = trained("double", "max_steps=1")
    assert losses(double) == pytest.approx([2 * losses(plain)[0]])
    assert _measured(double) == pytest.approx(_measured(plain), rel=0.01)
    weigh("3")
    with pytest.raises(PatinaError, match="captions and names was"):
        trained("double", "max_steps=2", "resume=auto")


def _quoted(lines: list[str]) -> list[str]:
    """Rows of two columns whose captions hold a comma."""
    return [line if '"' in line else '{},"{}"'.format(*line.split(",", 1)) for line in lines]


def _measured(folder: Path) -> float:
    (line,) = (folder / "metrics.jsonl").read_text().splitlines()
    return json.loads(line)["validation_loss"]
