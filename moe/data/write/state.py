"""The folders of a conversion: what is done, what it was planned as, and how the result appears.

    <out>.partial/  plan.json   .lock   units/<unit>/done.json   merged/
    <out>/          train/  val/  conversion.json  meta.json

`plan.json` holds the request; a run that differs from it is refused. Each unit's done mark holds its file's size and
time, so a file that changed after its units were made is refused too, while a broken file may be mended.

A bucket knows no lock and no rename. There the parts are merged into <out> itself, whose `meta.json` goes first and
comes last: without it nothing reads <out> as a dataset. <out>.partial/publishing says that what <out> holds by then is
of this conversion.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

from moe.data.folders import Folder, LocalFolder
from moe.data.places import open_folder
from moe.data.s3 import S3Folder, remove_dead_scratch
from moe.data.text.files import SourceFile, Unit
from moe.data.write.unit_store import UnitStore
from moe.errors import InputError
from moe.locks import Busy, take_lock
from moe.typed_json import parse_json
from moe.units import say


class Plan(TypedDict):
    request: dict[str, Any]
    files: list[str]


class Begun(TypedDict):
    request: dict[str, Any]
    files: dict[str, str]


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [f"  {key}: {old.get(key)} then, {new[key]} now" for key in new if old.get(key) != new[key]]


def file_differences(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """Files with another version, as then and now; the first few."""
    changed = [name for name in sorted({**old, **new}) if old.get(name) != new.get(name)]
    lines = [f"  {name}: {old.get(name, 'not there')} then, {new.get(name, 'not there')} now" for name in changed[:5]]
    return lines + [f"  and {len(changed) - 5} more files"] * (len(changed) > 5)


class _Workspace:
    """What both kinds share. `merged` is where the dataset is put together."""

    merged: Folder

    def __init__(self, out: Folder, *, overwrite: bool) -> None:
        self.out, self.partial = out, out.beside(".partial")
        self.units = UnitStore(self.partial / "units")
        self._overwrite = overwrite

    def _is_begun(self) -> bool:
        """Whether <out> holds the beginning of this conversion's result."""
        return False

    def is_complete(self, identity: dict[str, Any], files: list[SourceFile]) -> bool:
        """Whether <out> is the finished result of this request.

        InputError when it is something else and may not be replaced.
        """
        if self.out.is_empty():
            return False
        if self.out.read("meta.json") is None:
            if self._is_begun():
                return False
            raise InputError(
                f"--out {self.out}: holds something else than a converted dataset; choose another folder or empty it"
            )
        if self._overwrite:
            return False
        try:
            report = parse_json(self.out.read("conversion.json") or b"", Begun)
        except ValueError:
            report = {"request": {}, "files": {}}
        changed = differences(report["request"], identity)
        if changed := changed or file_differences(report["files"], {file.name: file.version for file in files}):
            text = "\n".join(changed)
            raise InputError(
                f"--out {self.out}: holds another conversion\n{text}\n"
                "Choose another --out, or --overwrite to replace it."
            )
        return True

    def _open_plan(self, identity: dict[str, Any], files: list[SourceFile], units: list[Unit]) -> None:
        """Go on with what <out>.partial holds if the same request began it."""
        plan = {"request": identity, "files": [file.name for file in files]}
        try:
            old = parse_json(self.partial.read("plan.json") or b"", Plan)
        except ValueError:
            old = None
        if old is not None:
            changed = differences(old["request"], identity) or file_differences(
                dict.fromkeys(old["files"], "there"), {file.name: "there" for file in files}
            )
            for unit in units:
                done = None if changed else self.units.done(unit)
                if done is not None and done["file_version"] != unit.file.version:
                    changed.append(f"  {unit.file.name}: version {done['file_version']} then, {unit.file.version} now")
            if not changed:
                return
            if not self._overwrite:
                text = "\n".join(changed)
                raise InputError(
                    f"{self.partial}: begun by another request\n{text}\n"
                    "Run it as it was begun, or --overwrite to start again."
                )
            self._clear()
            self.units = UnitStore(self.units.folder)
        self.partial.write("plan.json", json.dumps(plan, indent=1, sort_keys=True).encode())

    def _clear(self) -> None:
        self.partial.delete()

    def discard(self) -> None:
        self.partial.delete()

    def discard_own(self, identity: dict[str, Any]) -> None:
        """Remove the work where it is of this request."""
        content = self.partial.read("plan.json")
        if content is not None and json.loads(content)["request"] == identity:
            self.discard()


class LocalWorkspace(_Workspace):
    def __init__(self, out: LocalFolder, *, overwrite: bool) -> None:
        super().__init__(out, overwrite=overwrite)
        self._out, self._partial = out.path, out.beside(".partial").path
        self.merged = self.partial / "merged"

    @contextmanager
    def lock(
        self, identity: dict[str, Any], files: list[SourceFile], units: list[Unit], *, shared: bool
    ) -> Iterator[None]:
        """Work in <out>.partial, alone or with other shards."""
        self._partial.mkdir(parents=True, exist_ok=True)
        try:
            lock = take_lock(self._partial / ".lock", say, shared=shared)
        except Busy:
            raise InputError(
                f"{self.partial}: another conversion is at work there; wait for it, or choose another --out"
            ) from None
        with lock:
            self._open_plan(identity, files, units)
            if not shared:
                for aside in self._partial.glob("units*/.*"):  # of killed workers
                    shutil.rmtree(aside, ignore_errors=True)
            yield

    def _clear(self) -> None:
        for entry in self._partial.iterdir():
            if entry.name != ".lock":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def begin_merge(self) -> None:
        """Empty the folder to merge into; a killed merge may have left something."""
        self.merged.delete()

    def publish(self) -> None:
        """Let the merged folder become <out>, and remove the work."""
        old = self._partial / "replaced"
        shutil.rmtree(old, ignore_errors=True)
        if self._out.exists():
            os.rename(self._out, old)
        os.rename(self._partial / "merged", self._out)
        self.discard()


class BucketWorkspace(_Workspace):
    def __init__(self, out: S3Folder, *, overwrite: bool) -> None:
        super().__init__(out, overwrite=overwrite)
        self.merged = out

    def _is_begun(self) -> bool:
        return self.partial.read("publishing") is not None

    @contextmanager
    def lock(
        self, identity: dict[str, Any], files: list[SourceFile], units: list[Unit], *, shared: bool
    ) -> Iterator[None]:
        """Nothing keeps a second run away; of the same request, both make the same."""
        del shared
        remove_dead_scratch()
        self._open_plan(identity, files, units)
        yield

    def begin_merge(self) -> None:
        self.partial.write("publishing", b"")
        self.out.delete(["meta.json"])
        self.out.delete()

    def publish(self) -> None:
        self.discard()


Workspace = LocalWorkspace | BucketWorkspace


def open_workspace(out: str | Path, *, overwrite: bool) -> Workspace:
    folder = open_folder(out)
    if isinstance(folder, LocalFolder):
        return LocalWorkspace(folder, overwrite=overwrite)
    assert isinstance(folder, S3Folder)
    return BucketWorkspace(folder, overwrite=overwrite)
