"""The house rules that a reader would otherwise have to police: sizes, arrows, words."""

import ast
import re
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(chain(ROOT.glob("patina/**/*.py"), ROOT.glob("tools/*.py"), ROOT.glob("train.py")))
FILE_LINES, FUNCTION_LINES = 300, 60


def imports(path: Path) -> set[str]:
    """Every module that a file imports when it runs, those under TYPE_CHECKING left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_there_is_something_to_check() -> None:
    assert len(SOURCES) > 40


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < FUNCTION_LINES, node.name


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_open_with_a_sentence_of_purpose(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_the_loop_knows_neither_families_nor_tasks() -> None:
    known = imports(ROOT / "patina" / "loop.py")
    assert not {name for name in known if name.startswith(("patina.families", "patina.family", "patina.tasks"))}
    assert {name.split(".")[1] for name in known if name.startswith("patina.")} <= {"errors", "progress", "task"}


def test_only_the_composition_root_sees_the_whole_config() -> None:
    allowed = {
        "run.py",
        "textrun.py",
        "course.py",
        "pictures.py",
        "conversations.py",
        "labelrun.py",
        "labels.py",
        "session.py",
        "facts.py",
        "config.py",
        "configfile.py",
        "configdocs.py",
        "configwords.py",
        "configyaml.py",
    }
    seeing = {path.name for path in SOURCES if "patina.config.Config" in imports(path)}
    assert seeing <= allowed


def test_families_are_told_apart_in_their_own_files_alone() -> None:
    pattern = re.compile(r"(if|elif|case)\b[^\n]*family(\.name)?\s*(==|!=|in\b)")
    guilty = [path for path in SOURCES if "families" not in path.parts and pattern.search(path.read_text())]
    assert not guilty


def test_nothing_catches_every_exception() -> None:
    guilty = [path for path in SOURCES if re.search(r"except\s*(Base)?Exception|except\s*:", path.read_text())]
    assert not guilty
