"""Data sets of the hub, and folders of the datasets library, are read as files are; nothing here reaches a network."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from patina.errors import PatinaError
from patina.text import hub
from patina.text.labelled import read_labelled
from patina.text.read import read, survey
from tests.toolbox import ROOT

ALPACA = [{"instruction": f"question {n}", "input": "", "output": f"answer {n}"} for n in range(5)]
TALK = [[{"role": "user", "content": f"hello {n}"}, {"role": "assistant", "content": f"hi {n}"}] for n in range(3)]


def test_a_folder_of_the_library_is_read_as_its_rows_would_be_from_a_file(tmp_path) -> None:
    Dataset.from_list(ALPACA).save_to_disk(str(tmp_path / "one"))
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ALPACA)))
    found, plain = read(tmp_path / "one"), read(tmp_path / "rows.jsonl")
    assert [row.turns for row in found.rows] == [row.turns for row in plain.rows]
    assert found.rows[3].place == "one[3]"
    assert found.notes[0] == "one: 5 rows"
    several = DatasetDict({"test": Dataset.from_list(ALPACA[:1]), "train": Dataset.from_dict({"messages": TALK})})
    several.save_to_disk(str(tmp_path / "several"))
    assert [[turn.text for turn in row.turns] for row in read(tmp_path / "several").rows] == [
        [f"hello {n}", f"hi {n}"] for n in range(3)
    ]


def test_a_fault_is_named_by_set_and_row(tmp_path) -> None:
    Dataset.from_list([*ALPACA, {"instruction": "why?", "input": "", "output": ""}]).save_to_disk(str(tmp_path / "set"))
    reading = survey(tmp_path / "set")
    assert len(reading.rows) == 5
    (fault,) = reading.faults
    assert fault.startswith("set[5], key output: the answer is empty")


def test_labels_that_are_kept_as_numbers_have_their_names(tmp_path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    made = Dataset.from_dict({"text": ["bad", "good", "fine"], "label": [0, 1, 1]}, features=features)
    made.save_to_disk(str(tmp_path / "reviews"))
    assert [(row.text, row.label) for row in read_labelled(tmp_path / "reviews", {}).rows] == [
        ("bad", "neg"),
        ("good", "pos"),
        ("fine", "pos"),
    ]


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("owner/name", ("owner/name", None, "train")),
        ("owner/name:test", ("owner/name", None, "test")),
        ("owner/name/small:train[:10%]", ("owner/name", "small", "train[:10%]")),
        ("name", None),
        ("a/b/c/d", None),
    ],
)
def test_names_say_set_config_and_split(path, named) -> None:
    assert hub.wanted(Path(path)) == named


def test_the_hub_is_asked_through_its_library_and_says_no_in_a_sentence(tmp_path) -> None:
    """In processes of their own: where the library looks is settled when it is imported."""
    env = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    env |= {"HF_DATASETS_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(map(json.dumps, ALPACA)))
    fetch = f"import datasets; datasets.load_dataset('json', data_files={{'train': {str(rows)!r}}})"
    subprocess.run([sys.executable, "-c", fetch], env=env, check=True, capture_output=True)
    (made,) = (tmp_path / "cache").glob("json/*")
    kept = Path(
        shutil.copytree(made, tmp_path / "cache" / "owner___name" / "default")
    )  # as one fetched earlier is kept
    for arrow in kept.rglob("json-train.arrow"):
        arrow.rename(arrow.with_name("name-train.arrow"))
    check = [sys.executable, str(ROOT / "tools" / "check_data.py")]
    found = subprocess.run([*check, "owner/name"], env=env, cwd=tmp_path, text=True, capture_output=True)
    assert (found.returncode, "owner/name:train: 5 rows" in found.stdout) == (0, True), found.stderr
    missing = subprocess.run([*check, "owner/other:test"], env=env, cwd=tmp_path, text=True, capture_output=True)
    assert missing.returncode == 2
    told = (missing.stdout + missing.stderr).strip().splitlines()[-1]
    assert "the hub's data set owner/other (split test) cannot be had" in missing.stdout + missing.stderr, told
    assert "Traceback" not in missing.stderr


def test_without_the_library_a_sentence_says_what_to_install(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    with pytest.raises(PatinaError, match=r"owner/name: there is no such file here.*pip install 'patina\[datasets\]'"):
        read(Path("owner/name"))
    with pytest.raises(PatinaError, match=r"answers: there is no such file or folder"):
        read(Path("answers"))
