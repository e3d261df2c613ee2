"""Train a LoRA: python train.py --config configs/demo_style.yaml [--plan] [key=value ...]."""

import argparse
from pathlib import Path

from patina.configfile import load
from patina.errors import run_command
from patina.imports import swift_imports


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="a YAML file; docs/config.md lists its keys")
    parser.add_argument("--plan", action="store_true", help="say what the run would do and take, and write nothing")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that replace the file's")
    args = parser.parse_args()
    config = load(args.config, args.overrides)
    # deferred: a mistake in the config is answered before torch is imported
    with swift_imports():
        from patina.watch.console import hush_libraries

        hush_libraries()
        from patina.run import foresee, run

    (foresee if args.plan else run)(config)
    return 0


if __name__ == "__main__":
    run_command(main)
