"""The recipe of the embedded world: every model's rounds of training, and the folders drawn beside them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from patina.demo import autoencoder, base, captioner, language
from patina.demo.fit import Round
from patina.demo.folders import MIXED, SMALL, save_answers, save_pictures


class Model(NamedTuple):
    """One embedded model: what teaches it, where it is saved, and its rounds of training."""

    teach: Callable[[Path, Path, torch.device, Sequence[Round]], None]
    folder: str
    rounds: tuple[Round, ...]


MODELS = {
    # After the first round the decoder learns alone: the latents that the base was taught stay what they were.
    "autoencoder": Model(
        autoencoder.teach,
        "base/vae",
        (
            Round(steps=3200, batch=64, learning_rate=1e-3, scenes=12000, seed=2),
            Round(steps=1700, batch=64, learning_rate=8e-4, scenes=6000, seed=4),
            Round(steps=1500, batch=64, learning_rate=6e-4, scenes=6000, seed=4),
        ),
    ),
    "base": Model(
        base.teach,
        "base",
        (
            Round(steps=3700, batch=1024, learning_rate=1.2e-3, scenes=160000, seed=1),
            Round(steps=1700, batch=1024, learning_rate=8e-4, scenes=80000, seed=5),
        ),
    ),
    "captioner": Model(
        captioner.teach,
        "captioner",
        (
            Round(steps=10900, batch=256, learning_rate=1e-3, scenes=12000, seed=2),
            Round(steps=1550, batch=256, learning_rate=6e-4, scenes=6000, seed=4),
            Round(steps=1650, batch=256, learning_rate=5e-4, scenes=6000, seed=4),
            Round(steps=2000, batch=256, learning_rate=4e-4, scenes=6000, seed=4),
        ),
    ),
    "language": Model(
        language.teach, "lm", (Round(steps=10000, batch=256, learning_rate=2e-3, scenes=200000, seed=3),)
    ),
}
"""The recipe, in the order in which the models need one another; autoencoder and captioner see each scene once in
every style."""


def teach(name: str, work: Path, out: Path, *, trial: bool = False) -> None:
    """Make one of MODELS below `out`, on a GPU where there is one; a trial does next to nothing of it, anywhere."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = MODELS[name]
    rounds = [plan.tried() for plan in model.rounds] if trial else model.rounds
    model.teach(work, out / model.folder, device, rounds)


def draw(out: Path) -> None:
    """The style to learn, two more to test with, and the table of answers."""
    save_pictures(out / "style_train", "neon", count=48, seed=11, sizes=MIXED)
    for style in ("pixel", "watercolour"):
        save_pictures(out / "style_test" / style, style, count=8, seed=12, sizes=SMALL)
    save_answers(out / "text_train" / "train.jsonl", count=1200, seed=13, held_out=False)
    save_answers(out / "text_train" / "test.jsonl", count=100, seed=14, held_out=True)
