"""tests/faults.md is true: every test it names exists, and begins its docstring with the fault's number."""

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

ROW = re.compile(r"^\| ([A-H]\d+|S\d+) \| (.+) \|\s*(.*?)\s*\|$")


def rows() -> list[tuple[str, list[str]]]:
    lines = (ROOT / "tests/faults.md").read_text(encoding="utf-8").splitlines()
    found = [match for match in map(ROW.match, lines) if match]
    return [(match[1], re.findall(r"`([^`]+)`", match[3])) for match in found]


def docstrings(path: Path) -> dict[str, str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name: ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_the_table_has_every_fault_once() -> None:
    numbers = [number for number, _ in rows()]
    assert len(numbers) == len(set(numbers)) >= 80


@pytest.mark.parametrize(("number", "names"), rows(), ids=[number for number, _ in rows()])
def test_every_fault_names_tests_that_exist(number: str, names: list[str]) -> None:
    assert names, f"{number} names no test"
    for name in names:
        file, _, function = name.partition("::")
        text = docstrings(ROOT / "tests" / file)[function]
        assert number in re.findall(r"\b[A-H]\d+\b|\bS\d+\b", text.partition(":")[0]), (name, text[:80])
