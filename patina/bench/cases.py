"""What is measured: a row a case."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from patina.errors import PatinaError

RECIPE: Mapping[str, Any] = {
    "lora_rank": 8,
    "learning_rate": 1e-4,
    "optimizer": "adamw8bit",
    "mixed_precision": "fp16",
    "scheduler": "cosine",
    "save_steps": 0,
    "dataset": {"buckets": False},  # the plain loop cuts every picture to a square
}
"""The config of every case, where its row says nothing else; what it leaves out is as a user has it."""
DEMO_RECIPE: Mapping[str, Any] = {
    "lora_rank": 16,
    "learning_rate": 2e-3,
    "text_encoder_lr": 1e-4,
    "optimizer": "adamw",
    "mixed_precision": "fp32",
}
"""What configs/demo_style.yaml trains with."""


@dataclass(frozen=True)
class Case:
    """One job, done by Patina and by the plain loop."""

    name: str
    title: str
    family: str
    resolution: int
    batch: int
    text: bool
    """Whether the text encoders learn beside the UNet; else they have spoken before the first step."""
    checkpointing: bool = False
    pictures: int = 8
    warmup: int = 5
    """Steps that are not timed: allocators, algorithms and whatever a program prepares in its first steps."""
    steps: int = 30
    """Steps that are."""
    whole: bool = False
    """Whether the whole job's time is what is asked for."""
    device: str = "cuda"
    demo: bool = False
    """Whether the demo's base is trained, which is in the repository; else one in the published shape is drawn."""
    narrow: bool = False
    """Whether the drawn base has the published shape's layers at a fraction of their width."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Config keys beyond RECIPE."""
    threads: int | None = None
    """OMP_NUM_THREADS of both; None: as it is."""
    rounds: int = 1
    """How often each of the two does the job, in turn; the fastest counts."""
    limit: float = 150.0
    """Seconds after which a job is ended."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the pictures that are drawn: not square, so that something must be cut off."""
        return self.resolution * 5 // 4, self.resolution

    def config(self) -> dict[str, Any]:
        """The keys of a run's config, without its paths."""
        steps = {} if self.whole else {"max_steps": self.warmup + self.steps}
        return {
            **RECIPE,
            "resolution": self.resolution,
            "batch_size": self.batch,
            "train_text_encoder": self.text,
            "gradient_checkpointing": self.checkpointing,
            **steps,
            **self.settings,
        }


LEAST: Mapping[str, Any] = {"text": False, "checkpointing": True, "settings": {"quantize": "4bit"}}
"""What takes the least memory; the plain loop, which has no quantised base, trains over a whole one."""
GROWTH: Mapping[str, Any] = {"optimizer": "adamw", "mixed_precision": "fp32", "epochs": 1}
CASES: tuple[Case, ...] = (
    Case("sd15-unet-4", "SD1.5 512, UNet, batch 4", "sd15", 512, 4, text=False),
    Case("sd15-text-4", "SD1.5 512, UNet + text encoder, batch 4", "sd15", 512, 4, text=True),
    Case("sd15-text-1", "SD1.5 512, UNet + text encoder, batch 1", "sd15", 512, 1, text=True),
    Case("sd2-text-1", "SD2 768 (v), UNet + text encoder, batch 1", "sd2", 768, 1, text=True, steps=20),
    Case("sdxl-unet-1", "SDXL 1024, UNet, batch 1", "sdxl", 1024, 1, text=False, steps=15),
    Case("sdxl-unet-4", "SDXL 1024, UNet, batch 4", "sdxl", 1024, 4, text=False, steps=15),
    Case(
        "sdxl-checkpointing-4",
        "SDXL 1024, UNet, batch 4, gradient checkpointing",
        "sdxl",
        1024,
        4,
        text=False,
        checkpointing=True,
        steps=15,
    ),
    Case("sd15-least", "least memory: SD1.5 512, batch 1, base in 4 bits", "sd15", 512, 1, **LEAST),
    Case("sdxl-least", "least memory: SDXL 1024, batch 1, base in 4 bits", "sdxl", 1024, 1, steps=15, **LEAST),
    Case(
        "job",
        "the whole job (the second row, 100 pictures, 10 epochs)",
        "sd15",
        512,
        4,
        text=True,
        pictures=100,
        steps=245,
        whole=True,
        settings={"epochs": 10},
        limit=240,
    ),
    Case(
        "demo",
        "the demo's training, on the CPU",
        "sd15",
        128,
        4,
        text=True,
        pictures=48,
        warmup=10,
        steps=60,
        device="cpu",
        demo=True,
        settings=DEMO_RECIPE,
        threads=1,
        rounds=3,
        limit=300,
    ),
    *(
        Case(
            f"growth-{count}",
            f"{count} pictures once each, layers a thousandth as wide, on the CPU",
            *("sd15", 64, 4),
            text=True,
            pictures=count,
            warmup=1,
            steps=count // 4,
            whole=True,
            device="cpu",
            narrow=True,
            settings=GROWTH,
            threads=1,
            limit=900,
        )
        for count in (10, 100, 1000, 10_000)
    ),
)


def chosen(names: Sequence[str]) -> list[Case]:
    """The cases of these names in the table's order, all without any; raises PatinaError for a name that is none."""
    known = {case.name: case for case in CASES}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
            raise PatinaError(f"--case: there is no case {name!r}; write {' or '.join(near or known)} (--list has all)")
    return [case for case in CASES if not names or case.name in names]


def tiny(case: Case) -> Case:
    """The same case in next to no time on a CPU: a narrow base, small pictures, few steps."""
    epochs = {"epochs": 2} if case.whole else {}
    return replace(
        case,
        title=f"tiny: {case.title}",
        resolution=64,
        batch=min(case.batch, 2),
        pictures=4,
        warmup=1,
        steps=3,
        device="cpu",
        narrow=not case.demo,
        settings={**case.settings, **epochs},
        threads=1,
        rounds=1,
    )
