"""The folders of a conversion: what is done, what it was planned as, and how the result appears.

    <out>.partial/  plan.json   .lock   units/<unit>/done.json   merged/
    <out>/          train/  val/  meta.json  conversion.json

`plan.json` holds the request; a run that differs from it is refused. Each unit's done mark holds its file's size and
time, so a file that changed after its units were made is refused too, while a broken file may be mended.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moe.data.sources import SourceFile, Unit
from moe.data.unit import read_done
from moe.errors import InputError


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [f"  {key}: {old.get(key)} then, {new[key]} now" for key in new if old.get(key) != new[key]]


class Workspace:
    def __init__(self, out: Path, *, overwrite: bool) -> None:
        self.out = out.absolute()
        self.partial = self.out.with_name(self.out.name + ".partial")
        self.units = self.partial / "units"
        self.merged = self.partial / "merged"
        self._overwrite = overwrite

    def is_complete(self, identity: dict[str, Any], files: list[SourceFile]) -> bool:
        """Whether <out> is the finished result of this request.

        InputError when it is something else and may not be replaced.
        """
        if not self.out.exists() or (self.out.is_dir() and not any(self.out.iterdir())):
            return False
        if not (self.out / "meta.json").is_file():
            raise InputError(
                f"--out {self.out}: holds something else than a converted dataset; choose another folder or empty it"
            )
        if self._overwrite:
            return False
        try:
            report = json.loads((self.out / "conversion.json").read_text())
        except (OSError, json.JSONDecodeError):
            report = {"request": {}, "files": {}}
        changed = differences(report["request"], identity)
        now = {file.name: file.version for file in files}
        if not changed and report["files"] != now:
            changed = ["  source: files were added, removed or changed since"]
        if changed:
            text = "\n".join(changed)
            raise InputError(
                f"--out {self.out}: holds another conversion\n{text}\n"
                "Choose another --out, or --overwrite to replace it."
            )
        return True

    @contextmanager
    def lock(
        self, identity: dict[str, Any], files: list[SourceFile], units: list[Unit], *, shared: bool
    ) -> Iterator[None]:
        """Work in <out>.partial, alone or with other shards, on what it already holds if the same request began it."""
        self.partial.mkdir(parents=True, exist_ok=True)
        with open(self.partial / ".lock", "w") as handle:
            try:
                fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except OSError as error:
                raise InputError(
                    f"{self.partial}: another conversion is at work there; wait for it, or choose another --out"
                ) from error
            self._open_plan(identity, files, units)
            if not shared:
                for aside in self.partial.glob("units*/.*"):  # of killed workers
                    shutil.rmtree(aside, ignore_errors=True)
            yield

    def _open_plan(self, identity: dict[str, Any], files: list[SourceFile], units: list[Unit]) -> None:
        path = self.partial / "plan.json"
        plan = {"request": identity, "files": [file.name for file in files]}
        try:
            old = json.loads(path.read_text())
        except (OSError, json.JSONDecodeError):
            old = None
        if old is not None:
            changed = differences(old["request"], identity) + differences(
                {"files": old["files"]}, {"files": plan["files"]}
            )
            for unit in units:
                done = None if changed else read_done(self.units, unit)
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
            for entry in self.partial.iterdir():
                if entry.name != ".lock":
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        aside = path.with_suffix(f".{os.getpid()}")
        aside.write_text(json.dumps(plan, indent=1, sort_keys=True))
        os.rename(aside, path)

    def fresh_merged(self) -> Path:
        """An empty folder to merge into; what a killed merge left is removed."""
        shutil.rmtree(self.merged, ignore_errors=True)
        self.merged.mkdir()
        return self.merged

    def publish(self) -> None:
        """Let the merged folder become <out>, and remove the work."""
        old = self.partial / "replaced"
        shutil.rmtree(old, ignore_errors=True)
        if self.out.exists():
            os.rename(self.out, old)
        os.rename(self.merged, self.out)
        self.discard()

    def discard(self) -> None:
        shutil.rmtree(self.partial, ignore_errors=True)
