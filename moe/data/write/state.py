"""The folders of a conversion: what is done, what it was planned as, and how the result appears.

    <out>.partial/  plan.json   .lock   .plan.lock   units/<unit>/done.json   merging.json   merged/
    <out>/          train/  val/  conversion.json  meta.json

A bucket knows no lock and no rename. There the parts are merged into <out> itself, whose `meta.json` goes first and
comes last: without it nothing reads <out> as a dataset. <out>.partial/publishing says that what <out> holds by then is
of this conversion.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from moe.common.durable import make_folder, sync_folder
from moe.common.errors import InputError
from moe.common.locks import Busy, share, take_lock
from moe.common.ownership import entries, remove_files, replaceable_place
from moe.common.paths import path_or_address, refuse_unwritable
from moe.common.units import say
from moe.data.folders import LocalFolder
from moe.data.locations import open_folder
from moe.data.meta import SPLITS
from moe.data.s3 import S3Folder, remove_dead_scratch
from moe.data.text.files import SourceFile
from moe.data.write.journal import Journal
from moe.data.write.workspace import RESULT, WORK, Work

LOCKS = {".lock", ".plan.lock"}
ASK_AGAIN_S = 0.1


class LocalWorkspace(Work):
    def __init__(self, out: LocalFolder, *, overwrite: bool) -> None:
        super().__init__(out, overwrite=overwrite)
        self._out, self._partial = out.path, out.beside(".partial").path
        self.merged = self.partial / "merged"

    @contextmanager
    def lock(
        self,
        identity: dict[str, Any],
        files: Sequence[SourceFile],
        *,
        shared: bool,
        full: bool = False,
    ) -> Iterator[None]:
        """Work in <out>.partial, alone or with other shards."""
        with self._plan_lock():
            lock, alone = self._work_lock(shared)
            try:
                self._open_plan(identity, files, full=full, alone=alone)
                if shared:
                    share(lock)
            except BaseException:
                lock.close()
                raise
        with lock:
            if not shared:
                for aside in self._partial.glob("units*/.*"):  # of killed workers
                    shutil.rmtree(aside, ignore_errors=True)
            yield

    def _plan_lock(self) -> TextIO:
        """Held while the plan is looked at and written: shards that start at once do so one after the other."""
        told = False
        while True:
            make_folder(self._partial)
            try:
                return take_lock(self._partial / ".plan.lock", say)
            except FileNotFoundError:  # the folder was removed, with finished work
                continue
            except Busy:
                if not told:
                    say(f"{self.partial}: another process looks at what is begun there; waiting for it")
                told = True
                time.sleep(ASK_AGAIN_S)

    def _work_lock(self, shared: bool) -> tuple[TextIO, bool]:
        """The lock, and whether nobody else is at work: only then may work be removed."""
        path = self._partial / ".lock"
        with suppress(Busy):
            return take_lock(path, say), True
        with suppress(Busy):
            if shared:
                return take_lock(path, say, shared=True), False
        raise self._at_work()

    def _result_names(self) -> list[str]:
        return entries(self._out)  # links and empty folders among them

    def _work_names(self) -> set[str]:
        return set(os.listdir(self._partial)) if self._partial.is_dir() else set()

    def _work_entries(self) -> list[str]:
        return entries(self._partial)

    def _clear(self) -> None:
        self._remove(self._work_names() - LOCKS)

    def discard(self) -> None:
        self._remove(self._work_names())
        remove_files(self._partial, [])

    def _remove(self, names: set[str]) -> None:
        for name in sorted(names, key="plan.json".__eq__):  # last: it says whose the rest is
            entry = self._partial / name
            if WORK.fullmatch(name):
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink(missing_ok=True)

    def begin_merge(self, journal: Journal) -> None:
        """Empty the folder to merge into, unless a merge of the same units was begun there."""
        if not journal.resumed:
            self.merged.delete()
        merged = self._partial / "merged"
        for aside in [*merged.glob("*/.*"), *merged.glob(".*")]:  # what was not complete
            shutil.rmtree(aside) if aside.is_dir() else aside.unlink(missing_ok=True)
        journal.begin()

    def publish(self) -> None:
        """Let the merged folder become <out>, and remove the work.

        Raises InputError where it is not complete, or where <out> appeared meanwhile and nobody asked to replace it.
        """
        self._check_merged()
        if not self._overwrite and not self.out.is_empty():
            raise InputError(
                f"--out {self.out}: appeared while this worked and is left as it is; the work is kept in "
                f"{self.partial}: move the other away and run the same command again, or --overwrite to replace it"
            )
        old = self._partial / "replaced"
        shutil.rmtree(old, ignore_errors=True)
        if self._out.exists():
            self._check_result()  # once more: the work took long
            os.rename(self._out, old)
        os.rename(self._partial / "merged", self._out)
        sync_folder(self._out.parent)  # before the units go
        self.discard()

    def _check_merged(self) -> None:
        there = self.merged.sizes()
        indexes = [f"{split}/index.json" for split in SPLITS]
        missing = [name for name in ("meta.json", "conversion.json", *indexes) if name not in there]
        for index in set(indexes) - set(missing):
            for entry in json.loads(self.merged.read(index) or "")["shards"]:
                shard = f"{index.removesuffix('index.json')}{entry['raw_data']['basename']}"
                if there.get(shard) != entry["raw_data"]["bytes"]:
                    missing.append(shard)
        if missing:
            raise InputError(
                f"{self.merged}: {missing[0]} is missing or cut short, as where two processes merge at once; end the "
                "other one and run the same command again: the units are kept"
            )


class BucketWorkspace(Work):
    def __init__(self, out: S3Folder, *, overwrite: bool) -> None:
        super().__init__(out, overwrite=overwrite)
        self.merged = out

    def _is_begun(self) -> bool:
        return self.partial.read("publishing") is not None

    @contextmanager
    def lock(
        self,
        identity: dict[str, Any],
        files: Sequence[SourceFile],
        *,
        shared: bool,
        full: bool = False,
    ) -> Iterator[None]:
        """Nothing keeps a second run away; of the same request, both make the same."""
        del shared
        remove_dead_scratch()
        self._open_plan(identity, files, full=full, alone=True)
        yield

    def _clear(self) -> None:
        if self._is_begun() and self.out.read("meta.json") is None:
            self._remove_result()  # before the mark that says whose it is
        super()._clear()

    def _remove_result(self) -> None:
        self.out.delete([name for name in self.out.sizes() if RESULT.fullmatch(name)])

    def begin_merge(self, journal: Journal) -> None:
        self.partial.write("publishing", b"")
        self.out.delete(["meta.json"])
        if not journal.resumed:
            self._remove_result()
        journal.begin()

    def publish(self) -> None:
        self.discard()


Workspace = LocalWorkspace | BucketWorkspace


def open_workspace(out: str | Path, *, overwrite: bool) -> Workspace:
    """Raises InputError for a place that must not be replaced, or that holds what no conversion wrote."""
    folder = open_folder(path_or_address(out, "--out"))
    path_or_address(f"{out}.partial", "--out")  # that name has to fit, too
    space: Workspace
    if isinstance(folder, LocalFolder):
        place = LocalFolder(replaceable_place(folder.path, "--out"))
        if overwrite or not os.path.lexists(place.path / "meta.json"):
            _refuse_unwritable(place)
        space = LocalWorkspace(place, overwrite=overwrite)
    else:
        assert isinstance(folder, S3Folder)
        space = BucketWorkspace(folder, overwrite=overwrite)
    space.refuse_strangers()
    return space


def _refuse_unwritable(place: LocalFolder) -> None:
    """Before the work. Raises InputError where no conversion can be written there."""
    partial = place.beside(".partial").path
    if os.path.lexists(partial) and not partial.is_dir():
        raise InputError(
            f"--out {place}: {partial} is a file, where the work goes; move it away, or choose another --out"
        )
    refuse_unwritable(place.path.parent, f"--out {place}")
    # no file for a trial in the work itself: another machine that starts would take it for a stranger's
    if os.path.lexists(partial) and not os.access(partial, os.W_OK | os.X_OK):
        raise InputError(f"--out {place} cannot be written ({partial}: Permission denied); give another place")
