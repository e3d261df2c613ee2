"""The project's command lines: tools/ loaded as a user's Python would load them, or run in a process of their own."""

import importlib.util
import io
import multiprocessing
import os
import resource
import runpy
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from subprocess import CompletedProcess
from types import ModuleType

from patina import checkpoint

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / "tools"
TRAIN = ROOT / "train.py"

SERVER = multiprocessing.get_context("forkserver")
"""Each process is a fork of one that has imported the libraries and done nothing else: that takes ten seconds."""
SERVER.set_forkserver_preload(["patina.run", "patina.caption.label", "tests.toolbox", "tests.warm"])


def train_command(*words: str, limit: int | None = None) -> CompletedProcess:
    """`python train.py WORDS` in a process, with what it said as text; files may have `limit` bytes."""
    return command(TRAIN, *words, limit=limit)


def command(script: Path, *words: str, limit: int | None = None, typed: str = "") -> CompletedProcess:
    """`python SCRIPT WORDS` from the folder that the test is in, `typed` on its pipe; see `train_command`."""
    with tempfile.TemporaryDirectory() as said:
        Path(said, "in").write_text(typed, encoding="utf-8")
        process = started(script, *words, said=said, limit=limit)
        process.join()
        assert process.exitcode is not None
        out, err = (Path(said, name).read_text(encoding="utf-8") for name in ("out", "err"))
    return CompletedProcess([str(script), *words], process.exitcode, out, err)


def started(
    script: Path, *words: str, said: str, limit: int | None = None, env: Mapping[str, str] | None = None
) -> ForkServerProcess:
    """The process, which reads `in` and writes what it says to `out` and `err`, in the folder `said`; `env`: what its
    environment has besides."""
    process = SERVER.Process(target=play, args=(script, words, os.getcwd(), said, limit, {**os.environ, **(env or {})}))
    process.start()
    return process


@contextmanager
def team_of_two(*words: str) -> Iterator[list[ForkServerProcess]]:
    """Two processes of `python train.py WORDS` with what torch.distributed.run and `accelerate launch` put into the
    environment; what each says is in `said0` and `said1`, in the folder that the test is in."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    processes = []
    for number in map(str, range(2)):
        said = Path(f"said{number}")
        said.mkdir(exist_ok=True)
        for name in ("in", "out", "err"):
            (said / name).write_text("")
        env = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        env |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
        processes.append(started(TRAIN, *words, said=str(said), env=env))
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.join()


def play(script: Path, words: tuple[str, ...], cwd: str, said: str, limit: int | None, env: dict[str, str]) -> None:
    """Be the script's process."""
    os.chdir(cwd)
    os.environ.update(env)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(Path(said, name), os.O_WRONLY | os.O_CREAT), number)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.stdin = io.StringIO(Path(said, "in").read_text(encoding="utf-8"))
    sys.argv = [str(script), *words]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")


def killed_once_saved(folder: Path, *words: str) -> int:
    """Start `python train.py WORDS`, kill it when `folder` has a checkpoint; the newest checkpoint's step."""
    with tempfile.TemporaryDirectory() as said:
        Path(said, "in").touch()
        process = started(TRAIN, *words, said=said)
        deadline = time.monotonic() + 90
        while checkpoint.newest(folder) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
        process.join()
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
