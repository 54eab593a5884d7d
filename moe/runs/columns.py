"""The rows of metrics.jsonl as columns: of each metric the steps and the values, in the order of the rows.

Decisions:
- Steps and values are arrays of machine numbers, 16 bytes a value: as parsed objects a long log takes some ten times
  that, and to ask each row for each metric takes longer than to read the file.
- A column is made once, while the file is read. Who asks for it gets a list of its own.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Any

LARGEST = 3.4e38  # of fp32; what a file holds beyond can be damage only, and no scale can be drawn for it
MOST_STEPS = 10**15  # a float still counts them one by one
SAMPLE = "samples/"


class Columns:
    """Attributes:
    rows: how many there were.
    step: that of the last row; 0 for none.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.step = 0
        self._numbers: dict[str, tuple[array[int], array[float]]] = {}
        self._lists: dict[str, tuple[array[int], list[array[float]]]] = {}
        self._texts: dict[str, list[tuple[int, str]]] = {}

    def extend(self, rows: Iterable[dict[str, Any]]) -> None:
        """A row without a step is dropped, and so is a value that is not finite or that fp32 cannot hold."""
        for row in rows:
            step: Any = row.get("step")
            if not is_step(step):
                continue
            self.rows, self.step = self.rows + 1, step
            for key, value in row.items():
                if is_number(value):
                    if (column := self._numbers.get(key)) is None:
                        column = self._numbers[key] = array("q"), array("d")
                    column[0].append(step)
                    column[1].append(value)
                elif isinstance(value, list):
                    if value and all(map(is_number, value)):
                        steps, values = self._lists.setdefault(key, (array("q"), []))
                        steps.append(step)
                        values.append(array("d", value))
                elif isinstance(value, str) and key.startswith(SAMPLE):
                    self._texts.setdefault(key.removeprefix(SAMPLE), []).append((step, value))

    def series(self, key: str) -> list[tuple[int, float]]:
        """(step, value) of each row that has a number there."""
        return list(zip(*self._numbers[key], strict=True)) if key in self._numbers else []

    def last(self, key: str) -> float | None:
        return self._numbers[key][1][-1] if key in self._numbers else None

    def lists(self, key: str) -> list[tuple[int, list[float]]]:
        """(step, values) of each row that has a list of numbers there."""
        steps, values = self._lists.get(key, ((), ()))
        return [(step, list(of)) for step, of in zip(steps, values, strict=True)]

    def last_list(self, key: str) -> list[float] | None:
        return list(self._lists[key][1][-1]) if key in self._lists else None

    def texts(self) -> dict[str, list[tuple[int, str]]]:
        """Prompt -> (step, text) of each row that has one."""
        return {prompt: list(texts) for prompt, texts in self._texts.items()}


def is_number(value: Any) -> bool:
    kind = type(value)  # most are floats; `isinstance` of a union costs as much as all else in a long run
    return (kind is float or kind is int) and -LARGEST <= value <= LARGEST


def is_step(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_STEPS
