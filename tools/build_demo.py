"""Rebuild the embedded world from nothing: python tools/build_demo.py PART --work DIR [--scale S]."""

import argparse
import time
from pathlib import Path

DATA = Path(__file__).resolve().parents[1] / "data" / "demo"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("autoencoder", "base", "captioner", "language"))
    parser.add_argument("--work", type=Path, default=Path("build"), help="where drawn pictures are kept")
    parser.add_argument("--out", type=Path, default=DATA)
    parser.add_argument("--scale", type=float, default=1.0, help="share of scenes; 0.001 tries the code on a CPU")
    parser.add_argument("--steps", type=int)
    args = parser.parse_args()
    started = time.monotonic()
    build(args.part, args.work, args.out, args.scale, args.steps)
    print(f"{args.part}: {time.monotonic() - started:.0f} s")
    return 0


def build(part: str, work: Path, out: Path, scale: float, steps: int | None) -> None:
    import torch

    from patina.demo import autoencoder, base, captioner, language

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def some(count: int) -> int:
        return max(8, round(count * scale))

    match part:
        case "autoencoder":
            autoencoder.teach(work, out / "base" / "vae", device, steps=steps or 6000, scenes=some(16000))
        case "base":
            base.teach(work, out / "base", device, steps=steps or 10000, scenes=some(200000))
        case "captioner":
            captioner.teach(work, out / "captioner", device, steps=steps or 10000, scenes=some(16000))
        case "language":
            language.teach(work, out / "lm", device, steps=steps or 8000, rows=some(200000))


if __name__ == "__main__":
    raise SystemExit(main())
