"""Where a benchmark keeps what it draws and what its jobs write."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patina.bench.cases import Case

ROOT = Path(__file__).resolve().parents[2]
DEMO_BASE = ROOT / "data" / "demo" / "base"


@dataclass(frozen=True)
class Place:
    """A case's folders below the work folder."""

    work: Path
    case: Case

    @property
    def base(self) -> Path:
        """The model that is trained; one that is drawn is kept for the next time."""
        kind = "narrow" if self.case.narrow else "full"
        return DEMO_BASE if self.case.demo else self.work / "bases" / f"{self.case.family}-{kind}"

    @property
    def pictures(self) -> Path:
        """The pictures that it is trained on, kept likewise; `metadata.csv` among them has their captions."""
        width, height = self.case.size
        return self.work / "pictures" / f"{self.case.pictures}-{width}x{height}"

    def output(self, side: str) -> Path:
        """What one side's job writes: made anew each time."""
        return self.work / "runs" / self.case.name / side

    def config(self, side: str) -> dict[str, Any]:
        """One side's whole config, as a user would write it."""
        return {
            "train_data_dir": str(self.pictures),
            "metadata_path": str(self.pictures / "metadata.csv"),
            "base_model": str(self.base),
            "family": self.case.family,
            "output_dir": str(self.output(side)),
            "output_name": "bench",
            "engine": {"device": self.case.device},
            **self.case.config(),
        }


def write_json(path: Path, content: object) -> None:
    """Plain JSON, for the next process or for the reader."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
