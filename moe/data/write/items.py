"""What a worker makes in one call: a unit, or many small ones that follow each other, with one output for all of them.

- A unit by itself costs seven files. Where a dataset has MANY small files or more, those that follow each other are
  made together. The units stay what they are: their keys, order and tokens, so the dataset's bytes too.
- Which files are small and which go together depends on the listing alone: not on the workers, nor on files that cannot
  be read. An item is known by the units in it, so what a run made is kept when the files that failed are fixed.
- `<item>/` holds a done mark with that of each unit, the lengths and hashes of all documents, and of each split a
  `.rest`: the complete blocks of all units, in order, then what is behind the last complete block of each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from moe.data.folders import Folder
from moe.data.meta import SPLITS
from moe.data.text.errors import BadFileError
from moe.data.text.files import SMALL_BYTES, SourceFile, Unit
from moe.data.text.planning import Planning
from moe.data.write.packing import HeldTokens, TooManyTokensError
from moe.data.write.unit import Job, Report, convert_unit, make_unit
from moe.data.write.unit_store import MARK, item_marks, save_array

MANY = 1000  # small files
ITEM_BYTES, ITEM_FILES = 8 << 20, 512
LEAST_TURNS = 16  # files or groups for each machine of several, or they share units: one may have many
Begun = Callable[[Unit], None]
HUB_FILES = 64  # in the place of ITEM_FILES: each takes a worker a tenth of a second or more


@dataclass(frozen=True)
class Item:
    """Units in order, at least one."""

    units: tuple[Unit, ...]

    @property
    def name(self) -> str:
        first = self.units[0].name
        if len(self.units) == 1:
            return first
        return f"{first}-{xxhash.xxh64_hexdigest(' '.join(unit.name for unit in self.units))}"


def groups_of(files: Sequence[SourceFile]) -> np.ndarray:
    """The group of each file: those of one number go together; -1 is none. int32 [files]"""
    groups = np.full(len(files), -1, np.int32)
    number, size, count, small = 0, 0, 0, 0
    for i, file in enumerate(files):
        if file.size > SMALL_BYTES:
            continue
        after_large = i > 0 and groups[i - 1] < 0
        if after_large or count == (HUB_FILES if file.remote else ITEM_FILES) or size + file.size > ITEM_BYTES:
            number, size, count = number + 1, 0, 0
        groups[i], size, count, small = number, size + file.size, count + 1, small + 1
    return groups if small >= MANY else np.full(len(files), -1, np.int32)


def items_of(
    units: Iterable[Unit | None], groups: np.ndarray, wanted: Callable[[Unit], bool] = lambda unit: True
) -> Iterator[Item | None]:
    """Items of those units that are wanted. None, for "no further unit yet", is passed on."""
    held: list[Unit] = []
    group = -1
    for unit in units:
        if unit is None:
            yield None
            continue
        mine = int(groups[unit.file_index])
        if held and mine != group:
            yield Item(tuple(held))
            held = []
        group = mine
        if not wanted(unit):
            continue
        if group < 0:
            yield Item((unit,))
        else:
            held.append(unit)
    if held:
        yield Item(tuple(held))


def share_of(planning: Planning, groups: np.ndarray, index: int, number: int) -> None:
    """Leave to `planning` the share of one of `number` machines: whole files and groups in turn, known by the listing
    alone, so that each looks at its own; of few files, all of which are looked at, items in turn, and of those that
    cannot be read the error: each is reported by one machine, and by the merge.
    """
    begins = np.ones(len(groups), bool)  # of a group, or of a file by itself
    begins[1:] = (groups[1:] != groups[:-1]) | (groups[1:] < 0)
    turns = np.cumsum(begins) - 1
    if turns[-1] >= LEAST_TURNS * number:
        planning.keep(turns % number == index)
        return
    planning.all()
    items = [item for item in items_of(planning.units, groups) if item is not None]
    planning.units = planning.units.of(unit for item in items[index::number] for unit in item.units)
    planning.keep_errors(np.arange(len(groups)) % number == index)


def convert_item(
    job: Job, item: Item, folder: Folder, report: Report, begun: Begun = lambda unit: None
) -> list[BadFileError]:
    """Make the item's units in `folder`, those aside that are done. Returns the errors of files that cannot be read.
    `begun` is called with each unit before its file is read.

    Units behind what the job's own limits need may be left unmade.
    """
    if len(item.units) == 1:
        return _alone(job, item.units[0], folder, report, begun)
    done = item_marks(folder, item.name)
    if done is not None:  # made in another call, whose errors are not known here
        left = [unit for unit in item.units if unit.name not in done]
        return [error for unit in left for error in _alone(job, unit, folder, report, begun)]
    with folder.scratch(item.name) as aside:
        together = _Together(job)
        errors: list[BadFileError] = []
        with ExitStack() as stack:
            files = {split: stack.enter_context(open(aside / f"{split}.rest", "wb")) for split in SPLITS}
            for unit in item.units:
                if together.is_enough():
                    break
                made: list[tuple[int, int, int]] = []
                begun(unit)
                try:
                    together.add(unit, files, lambda *more, made=made: made.append(more))
                except BadFileError as error:
                    errors.append(error)
                except TooManyTokensError:
                    errors += _alone(job, unit, folder, report, begun)
                else:
                    report(*(sum(column) for column in zip(*made, strict=True)))
            together.finish(files)
        if together.marks:
            save_array(aside / "lengths.npy", np.concatenate(together.lengths))
            save_array(aside / "hashes.npy", np.concatenate(together.hashes))
            (aside / MARK).write_text(json.dumps({"units": together.marks}))
            folder.adopt(aside, item.name, MARK)
    return errors


def _alone(job: Job, unit: Unit, folder: Folder, report: Report, begun: Begun) -> list[BadFileError]:
    begun(unit)
    try:
        convert_unit(job, unit, folder, report)
    except BadFileError as error:
        return [error]
    return []


class _Together:
    """The units of one item. Their complete blocks are written as they come; what is behind these is held."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.marks: dict[str, dict[str, Any]] = {}
        self.lengths: list[np.ndarray] = []
        self.hashes: list[np.ndarray] = []
        self._documents = self._tokens = 0
        self._tails: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}

    def is_enough(self) -> bool:
        """Whether these units alone reach a limit: then none behind them is needed."""
        most, most_tokens = self._job.max_documents, self._job.max_tokens
        return (most is not None and self._documents >= most) or (
            most_tokens is not None and self._tokens >= most_tokens
        )

    def add(self, unit: Unit, files: dict[str, Any], report: Report) -> None:
        """Raises BadFileError and TooManyTokensError; the item is then as it was."""
        job, writers = self._job, {split: HeldTokens() for split in SPLITS}
        mark, lengths, hashes = make_unit(job, unit, writers, report)
        mark["splits"], mark["at"] = {}, {"documents": self._documents}
        for split, writer in writers.items():
            tokens = writer.tokens(job.layout.dtype)
            whole = len(tokens) - len(tokens) % job.seq_len
            mark["at"][split] = [files[split].tell()]
            files[split].write(tokens[:whole].data)
            self._tails[split].append(tokens[whole:].copy())
            mark["splits"][split] = {"shards": [], "rest": len(tokens)}
        self.marks[unit.name] = mark
        self.lengths.append(lengths)
        self.hashes.append(hashes)
        self._documents, self._tokens = self._documents + len(lengths), self._tokens + int(lengths.sum())

    def finish(self, files: dict[str, Any]) -> None:
        """Write the ends of all units. `at` of a unit is then (its blocks, its end, the file's size), in bytes."""
        for split, file in files.items():
            for mark, tail in zip(self.marks.values(), self._tails[split], strict=True):
                mark["at"][split].append(file.tell())
                file.write(tail.data)
            for mark in self.marks.values():
                mark["at"][split].append(file.tell())
