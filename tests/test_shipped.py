"""Everything shipped runs: each config loads, the README's commands and paths are real, the demo trains."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from patina import configfile
from patina.data.captions import read_table
from patina.lora.file import read
from tests.toolbox import command

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [
    line.split("  #")[0].strip()
    for language, block in BLOCKS
    if language == "bash"
    for line in block.splitlines()
    if line.strip()
]
TOOLS = sorted({ROOT / "train.py", *(ROOT / "tools").glob("*.py")})


def test_there_is_something_to_check() -> None:
    assert len(CONFIGS) >= 2
    assert len(COMMANDS) >= 6


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_each_config_loads_and_says_what_it_needs(path) -> None:
    head = path.read_text(encoding="utf-8").split("train_data_dir")[0]
    assert "Needs:" in head
    assert "You should see:" in head
    configfile.load(path)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_the_readmes_make_targets_exist(command) -> None:
    target = shlex.split(command)[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python ")])
def test_the_readmes_commands_have_those_options(command) -> None:
    words = shlex.split(command)
    asked = [str(ROOT / words[1]), *words[2:3]] if words[1].endswith("lora.py") else [str(ROOT / words[1])]
    help_text = subprocess.run([sys.executable, *asked, "--help"], capture_output=True, text=True, check=True).stdout
    for option in (word for word in words if word.startswith("--")):
        assert re.search(rf"{option}\b", help_text), option


def test_the_readmes_tree_is_what_is_there() -> None:
    (tree,) = [block for language, block in BLOCKS if not language]
    named = [line.split("  ")[0].strip() for line in tree.splitlines() if line.strip()]
    assert all((ROOT / name).exists() for name in named)
    entries = {path.name for path in (ROOT / "tools").glob("*.py")}
    assert entries <= {Path(name).name for name in named}


@pytest.mark.parametrize("tool", TOOLS, ids=lambda path: path.name)
def test_help_is_instant_because_nothing_heavy_is_imported(tool) -> None:
    script = f"import runpy, sys; sys.argv = [{str(tool)!r}, '--help']\n"
    script += "try: runpy.run_path(sys.argv[0], run_name='__main__')\nexcept SystemExit: pass\n"
    script += "print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ended.stdout.strip().endswith("False")


@pytest.mark.parametrize(
    "words", ["check_data.py", "auto_label.py --backend offline --sidecar txt --input"], ids=lambda words: words[:10]
)
def test_what_needs_no_model_is_instant_because_nothing_heavy_is_imported(words, tmp_path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a red house.png")
    tool, *options = words.split()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", f"tools/{tool}", *options, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert ("be trained on" if "check" in tool else "1 captions from its file name") in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "PIL.Image" in imported
    assert not imported & {"torch", "transformers", "accelerate"}


def test_imports_leave_the_garbage_collector_at_work_and_past_what_they_brought() -> None:
    script = "import gc; from patina.imports import swift_imports\nwith swift_imports(): assert not gc.isenabled()\n"
    script += "assert gc.isenabled(); assert gc.get_freeze_count() > 1000"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_the_demo_labels_and_trains(tmp_path, monkeypatch) -> None:
    """`make demo`'s own commands, two steps long."""
    table = tmp_path / "metadata.csv"
    monkeypatch.chdir(ROOT)
    pictures = ("--input", "data/demo/style_train", "--output", str(table))
    labelled = command(ROOT / "tools/auto_label.py", "--trigger", "neonpt", *pictures)
    assert labelled.returncode == 0, labelled.stderr
    rows = read_table(table)
    assert len(rows) == len(list((ROOT / "data/demo/style_train").glob("*.png")))
    assert all(caption.startswith("neonpt, ") for caption in rows.values())
    assert not any(word in caption for caption in rows.values() for word in ("neon,", "glow", "style"))
    out = tmp_path / "out"
    overrides = [f"metadata_path={table}", f"output_dir={out}", "output_name=demo", "max_steps=2", "warmup_steps=0"]
    overrides.append("preview.every=0")
    trained = subprocess.run(
        [sys.executable, "-X", "importtime", "train.py", "--config", "configs/demo_style.yaml", *overrides],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert trained.returncode == 0, trained.stderr
    assert "bitsandbytes" in trained.stderr  # as peft imports it
    assert "torch._inductor.compile_fx" not in trained.stderr  # a second, for a compiler that nothing runs
    assert "Done:" in trained.stdout
    assert "<lora:demo:1> neonpt" in trained.stdout
    assert len(read(out / "demo.safetensors").layers) == 264
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2
    assert json.loads((out / "demo.json").read_text())["activation text"] == "neonpt"
