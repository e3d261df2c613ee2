"""Before anything is timed: draw bases and pictures, count operations, time the chip. A process of its own.

`python -m patina.bench.prepare TASK.json`: the task has the work folder, the cases, the device wanted, and the file
to write what was found to. The process that starts the jobs needs no torch then, nor any of the GPU's memory.
"""

from __future__ import annotations

import json
import platform
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from patina.bench.bases import make_base
from patina.bench.cases import Case
from patina.bench.places import Place, write_json
from patina.bench.yardstick import matrix_rate, training_flops
from patina.data.captions import write_table
from patina.demo.folders import save_pictures, varied_scenes
from patina.engine.precision import choose_device
from patina.errors import run_command
from patina.families import FAMILIES
from patina.files import replacing_folder

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "bitsandbytes")
SEED = 1
DRAWN = 200
"""Pictures that are drawn, at a fifth of a second each."""


def main() -> int:
    task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    write_json(Path(task["found"]), prepare(Path(task["work"]), [Case(**row) for row in task["cases"]], task["device"]))
    return 0


def prepare(work: Path, cases: list[Case], wanted: Literal["auto", "cpu", "cuda"]) -> dict[str, Any]:
    """Make what the cases need, those for a GPU that is not there left out; returns what the table is made with.

    `rate` is the floating-point operations a second by device, `flops` those of one picture by case. Raises
    PatinaError for a GPU that was asked for and is not there.
    """
    device = choose_device(wanted)
    here = [case for case in cases if case.device in ("cpu", device.type)]
    for case in here:
        place, family = Place(work, case), FAMILIES[case.family]
        if not place.base.is_dir():
            with replacing_folder(place.base) as part:
                make_base(family, part, device, narrow=case.narrow)
        if not place.pictures.is_dir():
            with replacing_folder(place.pictures) as part:
                draw_pictures(part, case)
    drawn = [case for case in here if not case.demo]
    return {
        "where": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {platform.machine()}",
        "versions": {name: version(name) for name in LIBRARIES},
        "cases": [case.name for case in here],
        "rate": {kind: matrix_rate(torch.device(kind)) for kind in sorted({case.device for case in drawn})},
        "flops": {case.name: _flops(case.family, case.resolution, case.text, case.narrow) for case in drawn},
    }


def draw_pictures(folder: Path, case: Case) -> None:
    """The case's pictures with their captions; beyond DRAWN they are the first ones again, but for one pixel."""
    drawn = min(case.pictures, DRAWN)
    save_pictures(folder, "plain", drawn, SEED, (case.size,))
    captions = [scene.caption() for scene in varied_scenes(drawn, SEED)]
    for number in range(drawn, case.pictures):
        with Image.open(folder / f"{number % drawn + 1:04d}.png") as image:
            image.putpixel((number % image.width, number // image.width % image.height), (number % 256, 0, 255))
            image.save(folder / f"{number + 1:04d}.png")
    rows = {f"{n + 1:04d}.png": captions[n % drawn] for n in range(case.pictures)}
    write_table(folder / "metadata.csv", rows)


@cache
def _flops(family: str, resolution: int, text: bool, narrow: bool) -> int:
    return training_flops(FAMILIES[family], resolution, text=text, narrow=narrow)


if __name__ == "__main__":
    run_command(main)
