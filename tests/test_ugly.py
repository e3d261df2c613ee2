"""A folder of ugly files is labelled, checked and trained on; each outcome is as its table says, no file changes."""

import hashlib
import shutil
from pathlib import Path

import pytest
from toolbox import load_tool

from patina import configfile
from patina.check.pictures import check_pictures
from patina.data.buckets import Buckets
from patina.data.captions import read_table, write_table
from patina.errors import PatinaError, printable
from patina.run import run
from tests.tiny import save_sd15
from tests.ugly import BESIDE, KINDS, NAMES, REFUSED, TORN, UNSAYABLE, UNSEEN, Row, make_folder

USED = [*KINDS, *NAMES, *BESIDE, *UNSAYABLE]
LABELLED = [row for row in USED if not row.unlabelled] + TORN
UNREAD = [*REFUSED, *TORN]
SHOWN = [*USED, *UNREAD]
ROWS = [*SHOWN, *UNSEEN]
CONFIG = """\
train_data_dir: ugly
metadata_path: all.csv
base_model: base
output_dir: out
resolution: 64
lora_rank: 1
batch_size: 8
mixed_precision: fp32
max_steps: 1
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("home")
    make_folder(home / "ugly", ROWS)
    save_sd15(home / "base")
    return home


@pytest.fixture
def place(made, monkeypatch):
    """The working directory; what is in the folder is looked at before and after."""
    monkeypatch.chdir(made)
    before = state(Path("ugly"))
    yield made
    assert state(Path("ugly")) == before


def state(folder: Path) -> dict[str, tuple]:
    """Of each file: size, time, mode and digest."""
    found = {}
    for path in sorted(folder.rglob("*")):
        facts = path.lstat()
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path)] = (facts.st_size, facts.st_mtime_ns, facts.st_mode, digest)
    return found


def names(rows: list[Row]) -> set[str]:
    return {row.name for row in rows}


def told(said: str, row: Row, words: str) -> bool:
    """Whether the one line that names the file, or the text beside it, says so."""
    name = printable(row.name)
    named = (f"ugly/{name}: ", f"ugly/{Path(name).stem}.txt, line 1: ")
    (line,) = [line for line in said.splitlines() if any(start in line for start in named)]
    return words in line


def all_captioned(table: Path, rows: list[Row]) -> None:
    write_table(table, {row.name: f"thing {number}" for number, row in enumerate(rows) if row not in UNSAYABLE})


def test_the_folder_is_as_large_as_was_asked_for() -> None:
    assert len(names(ROWS)) == len(ROWS) >= 60


def test_labelling_captions_what_it_can_and_names_the_rest(place, capsys) -> None:
    arguments = ["--input", "ugly", "--output", "labels.csv", "--backend", "offline", "--trigger", "sks"]
    assert load_tool("auto_label").main(arguments) == 1
    said = capsys.readouterr().err
    table = read_table(Path("labels.csv"))
    assert set(table) == names(LABELLED)
    assert table["gbk.png"] == "sks, 水墨画，江南"
    assert table["marked.png"] == "sks, ink, marked"
    assert table["wide.png"] == "sks, ink, wide"
    missed = [row for row in SHOWN if row not in LABELLED]
    assert f"{len(missed)} images could not be read" in said
    for row in missed:
        assert told(said, row, row.refused or row.unlabelled)
    assert load_tool("auto_label").main(arguments) == 1
    assert read_table(Path("labels.csv")) == table


def test_checking_finds_what_the_table_says(place) -> None:
    all_captioned(Path("all.csv"), SHOWN)
    assert load_tool("check_data").main(["ugly", "--metadata", "all.csv", "--resolution", "64"]) == 2
    checked = check_pictures(Path("ugly"), Path("all.csv"), None, Buckets(64, 8, 1))
    assert {record.path.name for record in checked.pictures} == names(USED)
    unreadable = {one.name: one.sentence for one in checked.findings if one.rule == "unreadable"}
    assert set(unreadable) == names(UNREAD)
    for row in UNREAD:
        assert row.refused in unreadable[row.name]
    for row in USED:
        said = [one.sentence for one in checked.findings if one.name == row.name]
        assert any(row.doubt in sentence for sentence in said) or not row.doubt, (row.name, said)


def test_training_names_what_it_cannot_read_and_trains_the_rest(place) -> None:
    all_captioned(Path("all.csv"), SHOWN)
    Path("run.yaml").write_text(CONFIG)
    with pytest.raises(PatinaError) as caught:
        run(configfile.load(Path("run.yaml")))
    said = str(caught.value)
    assert f"{len(UNREAD)} of {len(SHOWN)} pictures cannot be used:" in said
    for row in UNREAD:
        assert told(said, row, row.refused)
    shutil.copytree("ugly", "copy")
    for row in UNREAD:
        Path("copy", row.name).rename(Path(row.name))
    all_captioned(Path("rest.csv"), USED)
    result = run(configfile.load(Path("run.yaml"), ["train_data_dir=copy", "metadata_path=rest.csv"]))
    assert result.is_file()
