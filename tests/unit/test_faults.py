"""tests/faults.md is true: every test it names exists and begins its docstring with the fault's number, and each row
says what happened before the fix.
"""

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import ROOT

ROW = re.compile(r"^\| ([A-H]\d+|S\d+) \|")
BAR = re.compile(r"(?<!\\)\|")  # a `\|` is part of a cell


class Row(NamedTuple):
    number: str
    fault: str
    before: str
    tests: str

    @property
    def names(self) -> list[str]:
        return re.findall(r"`([^`]+)`", self.tests)


def rows() -> list[Row]:
    lines = (ROOT / "tests/faults.md").read_text(encoding="utf-8").splitlines()
    return [Row(*(cell.strip() for cell in BAR.split(line)[1:-1])) for line in lines if ROW.match(line)]


def docstrings(path: Path) -> dict[str, str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name: ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_the_table_has_every_fault_once() -> None:
    numbers = [row.number for row in rows()]
    assert len(numbers) == len(set(numbers)) >= 80


@pytest.mark.parametrize("row", rows(), ids=[row.number for row in rows()])
def test_every_fault_names_tests_that_exist_and_what_was_before(row: Row) -> None:
    assert row.before, f"{row.number} does not say what happened before"
    assert row.names, f"{row.number} names no test"
    for name in row.names:
        file, _, function = name.partition("::")
        text = docstrings(ROOT / "tests" / file)[function]
        assert row.number in re.findall(r"\b[A-H]\d+\b|\bS\d+\b", text.partition(":")[0]), (name, text[:80])
