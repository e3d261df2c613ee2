"""Rebuild the embedded world from nothing: python tools/build_demo.py PART, in the order of the parts' list."""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from patina.demo import autoencoder, base, captioner, language, prefix, quality
from patina.demo.fit import Round
from patina.demo.folders import MIXED, SMALL, save_answers, save_pictures
from patina.errors import run_command

DATA = Path(__file__).resolve().parents[1] / "data" / "demo"


class Model(NamedTuple):
    """One embedded model: what teaches it, where it is saved, and its rounds of training."""

    teach: Callable[[Path, Path, torch.device, Sequence[Round]], None]
    folder: str
    rounds: tuple[Round, ...]


MODELS = {
    # The second round trains the decoder alone: the latents that the base was taught stay what they were.
    "autoencoder": Model(
        autoencoder.teach,
        "base/vae",
        (
            Round(steps=3200, batch=64, learning_rate=1e-3, scenes=12000, seed=2),
            Round(steps=1700, batch=64, learning_rate=8e-4, scenes=6000, seed=4),
        ),
    ),
    "base": Model(
        base.teach,
        "base",
        (
            Round(steps=3600, batch=384, learning_rate=1e-3, scenes=150000, seed=1),
            Round(steps=850, batch=1024, learning_rate=8e-4, scenes=80000, seed=5),
        ),
    ),
    "prefix": Model(
        prefix.teach,
        "base/text_encoder",
        (
            Round(steps=800, batch=16, learning_rate=1.5e-3, scenes=6000, seed=6),
            Round(steps=1300, batch=16, learning_rate=1.5e-3, scenes=6000, seed=6),
        ),
    ),
    "captioner": Model(
        captioner.teach,
        "captioner",
        (
            Round(steps=10900, batch=256, learning_rate=1e-3, scenes=12000, seed=2),
            Round(steps=1550, batch=256, learning_rate=6e-4, scenes=6000, seed=4),
        ),
    ),
    "language": Model(
        language.teach, "lm", (Round(steps=10000, batch=256, learning_rate=2e-3, scenes=200000, seed=3),)
    ),
}
"""The recipe, in the order in which the models need one another; autoencoder and captioner see each scene five times,
once in every style."""
PARTS = (*MODELS, "pictures", "gates", "all")


def main(argv: list[str] | None = None) -> int:
    """Exit code 1 when a gate is not passed."""
    parser = argparse.ArgumentParser(description="Rebuild data/demo: models on a GPU, the rest anywhere.")
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--work", type=Path, default=Path("build"), help="keeps drawn pictures (default: build)")
    parser.add_argument("--out", type=Path, default=DATA, help="default: data/demo")
    parser.add_argument(
        "--try", action="store_true", dest="trial", help="two steps a round, this part and those before it"
    )
    args = parser.parse_args(argv)
    if args.trial:
        return rehearse(PARTS[: PARTS.index(args.part) + 1])
    parts = PARTS[:-1] if args.part == "all" else (args.part,)
    return max(build(part, args.work, args.out) for part in parts)


def rehearse(parts: Sequence[str]) -> int:
    """Next to nothing of each part, in a temporary folder, on any machine; the gates would say nothing there."""
    models = {name: model._replace(rounds=tuple(r.tried() for r in model.rounds)) for name, model in MODELS.items()}
    with tempfile.TemporaryDirectory() as folder:
        return max(build(part, Path(folder), Path(folder), models) for part in parts if part not in ("gates", "all"))


def build(part: str, work: Path, out: Path, models: dict[str, Model] = MODELS) -> int:
    """Make one part below `out`; returns its exit code."""
    started, device = time.monotonic(), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if part == "gates":
        return check(out, device)
    if part == "pictures":
        draw(out)
    else:
        model = models[part]
        model.teach(work, out / model.folder, device, model.rounds)
    print(f"{part}: {time.monotonic() - started:.0f} s")
    return 0


def draw(out: Path) -> None:
    """The style to learn, two more to test with, and the table of answers."""
    save_pictures(out / "style_train", "neon", count=36, seed=11, sizes=MIXED)
    for style in ("pixel", "watercolour"):
        save_pictures(out / "style_test" / style, style, count=8, seed=12, sizes=SMALL)
    save_answers(out / "text_train" / "train.jsonl", count=240, seed=13, held_out=False)
    save_answers(out / "text_train" / "test.jsonl", count=100, seed=14, held_out=True)


def check(data: Path, device: torch.device) -> int:
    """Print all gates; 1 when one is not passed."""
    gates = []
    for gate in quality.gates(data, device):
        gates.append(gate)
        print(gate, flush=True)
    return 0 if all(gate.passed for gate in gates) else 1


if __name__ == "__main__":
    run_command(main)
