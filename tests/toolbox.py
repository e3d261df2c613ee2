"""The project's command lines: tools/ loaded as a user's Python would load them, train.py in a process of its own."""

import importlib.util
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

from patina import checkpoint

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / "tools"


def train_command(*words: str, **options) -> subprocess.CompletedProcess:
    """`python train.py WORDS`, with what it said as text; `options` are subprocess.run's."""
    return subprocess.run([sys.executable, str(ROOT / "train.py"), *words], capture_output=True, text=True, **options)


def killed_once_saved(folder: Path, *words: str) -> int:
    """Start `python train.py WORDS`, kill it when `folder` has a checkpoint; the newest checkpoint's step."""
    process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), *words], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while checkpoint.newest(folder) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    latest = checkpoint.newest(folder)
    assert latest is not None
    return checkpoint.load(latest).step


def load_tool(name: str, folder: Path = TOOLS) -> ModuleType:
    """tools/NAME.py (or that in another folder) as a module; its `main` takes the command line."""
    spec = importlib.util.spec_from_file_location(f"{name}_tool", folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
