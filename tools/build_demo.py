"""Rebuild the embedded world from nothing: python tools/build_demo.py PART, in the order of the parts' list."""

import argparse
import tempfile
import time
from pathlib import Path

from patina.errors import run_command

DATA = Path(__file__).resolve().parents[1] / "data" / "demo"
MODELS = ("autoencoder", "base", "captioner", "language")
PARTS = (*MODELS, "pictures", "gates")


def main(argv: list[str] | None = None) -> int:
    """Exit code 1 when a gate is not passed."""
    parser = argparse.ArgumentParser(description="Rebuild data/demo: models on a GPU, the rest anywhere.")
    parser.add_argument("part", choices=(*PARTS, "all"))
    parser.add_argument("--work", type=Path, default=Path("build"), help="keeps drawn pictures (default: build)")
    parser.add_argument("--out", type=Path, default=DATA, help="default: data/demo")
    trial = "next to nothing of the part and of those before it, in a temporary folder"
    parser.add_argument("--try", action="store_true", dest="trial", help=trial)
    args = parser.parse_args(argv)
    if args.trial:
        return rehearse(args.part)
    parts = PARTS if args.part == "all" else (args.part,)
    return max(check(args.out) if part == "gates" else build(part, args.work, args.out) for part in parts)


def rehearse(last: str) -> int:
    """The parts up to the last in two steps a round; gates are left out, as nothing learnt could pass them."""
    parts = PARTS[: (*PARTS, "all").index(last) + 1]
    with tempfile.TemporaryDirectory() as folder:
        return max(build(part, Path(folder), Path(folder), trial=True) for part in parts if part != "gates")


def build(part: str, work: Path, out: Path, *, trial: bool = False) -> int:
    """Make one part below `out` and say how long it took."""
    # torch and open_clip take seconds to import: not before the command line has been understood.
    from patina.demo import recipe

    started = time.monotonic()
    if part == "pictures":
        recipe.draw(out)
    else:
        recipe.teach(part, work, out, trial=trial)
    print(f"{part}: {time.monotonic() - started:.0f} s")
    return 0


def check(data: Path) -> int:
    """Print each gate as it is measured; 1 when one is not passed."""
    import torch

    from patina.demo import quality

    failed = 0
    for gate in quality.gates(data, torch.device("cuda" if torch.cuda.is_available() else "cpu")):
        print(gate, flush=True)
        failed += not gate.passed
    return 1 if failed else 0


if __name__ == "__main__":
    run_command(main)
