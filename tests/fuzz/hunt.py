"""`make fuzz`: every target, or those named, for an equal share of FUZZ_SECONDS; a finding makes it end in error."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz.readers import READERS, TOKENS

SECONDS = 600
LONGEST, LARGEST = 10, 4096
"""Seconds and megabytes that one input may take."""
TEXTS = {
    "emphasis": (b"a (cat:1.2), [dog] \\(red\\) ((very)) BREAK sky",),
    "prompt line": (b"a cat --n a dog --w 512 --h 768 --d 3 --s 20 --l 7.5 <lora:style:0.8>",),
}
"""What is no file: a caption's weights, and a line of a preview's prompts."""


def main() -> int:
    """Hunt with each target and tell what was tried."""
    home = Path("output", "fuzz")
    seeds = {name: reader.seeds for name, reader in READERS.items()} | TEXTS
    names = sys.argv[1:] or sorted(seeds)
    share = max(1, int(os.environ.get("FUZZ_SECONDS", SECONDS)) // len(names))
    found = 0
    for name in names:
        tried, ended = hunt(name, seeds[name], share, home)
        found += ended.returncode != 0
        told = "nothing found" if ended.returncode == 0 else f"FOUND, the input is in {home}:\n{ended.stderr[-3000:]}"
        sys.stdout.write(f"{name}: {tried:,} inputs in {share} s: {told}\n")
        sys.stdout.flush()
    return int(found > 0)


def hunt(name: str, seeds: tuple[bytes, ...], share: int, home: Path) -> tuple[int, subprocess.CompletedProcess[str]]:
    """Go on from the seeds and what earlier hunts kept; returns the inputs tried, and how the process ended."""
    kept = home / name.replace(" ", "_")
    kept.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (kept / f"seed{number}").write_bytes(seed)
    with tempfile.TemporaryDirectory() as folder:
        words = Path(folder, "words")
        words.write_text("".join(map(spelt, TOKENS)))
        options = (f"-max_total_time={share}", f"-timeout={LONGEST}", f"-rss_limit_mb={LARGEST}", f"-dict={words}")
        options += (f"-artifact_prefix={home}/{kept.name}-", "-print_final_stats=1", "-seed=1", str(kept))
        command = [sys.executable, "-m", "tests.fuzz.target", name, folder, *options]
        ended = subprocess.run(command, text=True, errors="replace", capture_output=True)
    tried = re.search(r"stat::number_of_executed_units:\s*(\d+)", ended.stderr)
    return int(tried[1]) if tried else 0, ended


def spelt(token: bytes) -> str:
    """A line of libFuzzer's dictionaries."""
    return '"' + "".join(f"\\x{byte:02x}" for byte in token) + '"\n'


if __name__ == "__main__":
    sys.exit(main())
