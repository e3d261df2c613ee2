"""Prepare the cases, do each by both sides in turn, and read the figures."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import yaml

from patina import configfile
from patina.bench.cases import Case
from patina.bench.outside import Watched, watch
from patina.bench.places import ROOT, Place, write_json
from patina.bench.report import Row
from patina.errors import PatinaError

PREPARING = 300.0
"""Seconds that drawing bases and pictures may take."""
SIDES: Mapping[str, Sequence[str]] = {
    "plain": ("-m", "patina.bench.plain"),
    "Patina": (str(ROOT / "train.py"), "--config"),
}
"""What each is called and started by; the plain loop comes first, so that Patina's row can say how it compares."""


@dataclass(frozen=True)
class Facts:
    """What was found out before anything was timed; see `patina.bench.prepare`."""

    where: str
    versions: Mapping[str, str]
    cases: Sequence[str]
    rate: Mapping[str, float]
    flops: Mapping[str, int]


def prepare(cases: Sequence[Case], work: Path, device: str) -> Facts:
    """Draw what the cases need; raises PatinaError where that fails."""
    task, found, log = (work / f"prepare.{end}" for end in ("task.json", "found.json", "log"))
    wanted = {"work": str(work), "cases": [asdict(case) for case in cases], "device": device, "found": str(found)}
    write_json(task, wanted)
    done = watch(_python("-m", "patina.bench.prepare", str(task)), None, log, PREPARING, os.environ, ROOT)
    if done.code != 0:
        raise PatinaError(f"{_failure(done, PREPARING)} (all of it is in {log})")
    return Facts(**json.loads(found.read_text(encoding="utf-8")))


def measure(case: Case, facts: Facts, work: Path, sides: Sequence[str], overrides: Sequence[str]) -> Iterator[Row]:
    """The case's rows, each as soon as it is known. Raises ConfigError for overrides that no config takes."""
    seen: dict[str, list[Row]] = {side: [] for side in sides}
    plain = None
    for number in range(case.rounds):
        for side in sides:
            seen[side].append(_reading(case, side, facts, _do(Place(work, case), side, overrides)))
            if number == case.rounds - 1:
                row = _best(seen[side])
                yield replace(row, times=_times(case, plain, row))
                plain = plain or row


def _do(place: Place, side: str, overrides: Sequence[str]) -> Watched:
    """Both sides start with the same resolved config, but for where they write."""
    case, output = place.case, place.output(side)
    written, resolved, log = (output.with_name(f"{side}{end}") for end in (".yaml", ".resolved.yaml", ".log"))
    shutil.rmtree(output, ignore_errors=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    written.write_text(yaml.safe_dump(place.config(side), sort_keys=False), encoding="utf-8")
    resolved.write_text(configfile.dump(configfile.load(written, overrides)), encoding="utf-8")
    threads = {} if case.threads is None else {"OMP_NUM_THREADS": str(case.threads)}
    command = _python(*SIDES[side], str(resolved))
    return watch(command, output / "metrics.jsonl", log, case.limit, os.environ | threads, ROOT)


def _python(*words: str) -> list[str]:
    return [sys.executable, *words]


def _reading(case: Case, side: str, facts: Facts, done: Watched) -> Row:
    row = Row(case.name, case.title, side)
    if done.code != 0:
        return replace(row, error=_failure(done, case.limit))
    when = [seconds for seconds, _ in done.lines]
    seconds = (when[-1] - when[case.warmup - 1]) / (len(when) - case.warmup)
    rate = case.batch / seconds
    flops = facts.flops.get(case.name)
    return replace(
        row,
        milliseconds=1000 * seconds,
        images_per_second=rate,
        gpu_bytes=max(facts.get("memory", 0) for _, facts in done.lines) or None,
        host_bytes=done.memory or None,
        share=None if flops is None else rate * flops / facts.rate[case.device],
        start_seconds=when[0],
        whole_seconds=done.seconds,
    )


def _failure(done: Watched, limit: float) -> str:
    return f"ended at its limit of {limit:g} s" if done.code is None else f"failed: {done.says}"


def _best(rows: Sequence[Row]) -> Row:
    """The fastest round, the one that other programs disturbed least; where a round failed, that one."""
    return min(rows, key=lambda row: row.milliseconds or 0)


def _times(case: Case, plain: Row | None, row: Row) -> float | None:
    if plain is None or plain.error or row.error:
        return None
    one, other = (r.whole_seconds if case.whole else r.milliseconds for r in (plain, row))
    assert one is not None
    assert other is not None
    return one / other
