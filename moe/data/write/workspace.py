"""The work of a conversion, wherever it is kept: what is begun, done and complete, and whether it may be resumed.

`plan.json` holds the request; a run that differs from it is refused. Each unit's done mark holds its file's version and
a hash of what was read, so a file that changed after its units were made is refused too, while a broken file may be
fixed. Of a hub dataset the commit is recorded, and a resumed run takes that one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from moe.common.errors import InputError
from moe.common.ownership import refuse_strangers
from moe.common.units import say
from moe.data.folders import Folder
from moe.data.text.errors import WITHOUT_A_FILE
from moe.data.text.files import SourceFile
from moe.data.text.known import KnownTable
from moe.data.write.differences import (
    FORMAT,
    asked_differences,
    differences,
    file_differences,
    file_rows,
    how,
    versions,
)
from moe.data.write.recorded import edited
from moe.data.write.records import Begun, Records, is_of, learn, rows
from moe.data.write.streamed_json import streamed
from moe.data.write.unit_store import UnitStore

# what a conversion writes: in <out>, at the top of <out>.partial, and anywhere in it
RESULT = re.compile(r"meta\.json|conversion\.json|(train|val)/(index\.json|shard\.\d{5,}\.mds)")
WORK = re.compile(
    r"plan\.json|publishing|merging\.json|\.lock|\.plan\.lock|merged|replaced|failed|units(-[0-9a-f]{16})?(-cut-\w+-\w+)?|\.(plan|merging)\.json\.\w+"
)
UNIT = re.compile(
    r"units[^/]*/\.?\d{5,}-\d{13}(-[0-9a-f]{16})?(\.\w+)?(/(\.?done\.json|lengths\.npy|hashes\.npy|(train|val)\.(rest|\d{5,}\.mds)))?"
)
MERGED = re.compile(
    rf"(merged|replaced)/({RESULT.pattern}|train|val|\.(meta|conversion)\.json\.\w+"
    r"|(train|val)/\.(shard|index)\.\w+(/(shard|index\.json))?)"
)
FAILED = re.compile(r"failed/\.?\d+-of-\d+\.json(\.\w+)?")
NOT_BEGUN = re.compile(r"\.lock|\.plan\.lock|\.plan\.json\.\w+")  # is there before the first plan is
META_KEYS = frozenset({"dataset", "dtype", "seq_len", "tokenizer_fingerprint", "vocab_size"})  # in that of any version

WHOSE = ("publishing", "plan.json")  # in this order: the plan goes last
SAME = "the same command with --overwrite starts again"


class Work:
    """What both kinds share. `merged` is where the dataset is put together."""

    merged: Folder

    def __init__(self, out: Folder, *, overwrite: bool) -> None:
        self.out, self.partial = out, out.beside(".partial")
        self.units = UnitStore(self.partial / "units")
        self._overwrite = overwrite
        self._records = Records()

    def _is_begun(self) -> bool:
        """Whether <out> holds the beginning of this conversion's result."""
        return False

    def recorded_commit(self, asked: dict[str, Any]) -> str | None:
        """The commit of the hub that a run of the same command began with, or is complete with; None for none."""
        for folder, name in ((self.partial, "plan.json"), (self.out, "conversion.json")):
            begun = None if self._overwrite and folder is self.out else self._records.look(folder, name).begun
            if begun is not None and begun.format == FORMAT and begun.request.get("asked") == asked:
                return begun.request.get("commit")
        return None

    def _begun(self) -> Begun | None:
        """What the plan says; None where it is missing or damaged."""
        return self._records.look(self.partial, "plan.json").begun

    def known_files(self) -> KnownTable:
        """What is recorded of the files that were read before, here or for the result in <out>."""
        known = KnownTable()
        for folder, name in ((self.out, "conversion.json"), (self.partial, "plan.json")):
            try:
                learn(known, folder, name)
            except InputError:  # no room, or not to be read
                raise
            except (ValueError, TypeError):  # damaged: reported where it decides
                continue
        return known

    def refuse_strangers(self) -> None:
        """Raises InputError where <out> or <out>.partial holds what no conversion wrote, and would be replaced."""
        if not self.out.is_empty() and (self._overwrite or self._is_begun()):
            self._check_result()
        names = self._work_names()
        refuse_strangers(self.partial, names, lambda name: bool(WORK.fullmatch(name)), f"--out {self.out}")
        if "plan.json" in names:
            self._check_work()

    def refuse_unplanned(self) -> None:
        """Raises InputError where <out>.partial holds work, and not the plan that says whose it is. Not asked where
        <out> is complete: the plan of finished work may be gone.
        """
        names = {name for name in self._work_names() if not NOT_BEGUN.fullmatch(name)}
        if names and "plan.json" not in names:
            raise InputError(f"{self.partial}: holds no plan.json of a conversion; remove it, or choose another --out")

    def _check_work(self) -> None:
        """By content: others call their files so, too."""
        names = self._work_entries()
        refuse_strangers(
            self.partial,
            names,
            lambda name: any(ours.fullmatch(name) for ours in (WORK, UNIT, MERGED, FAILED)),
            f"--out {self.out}",
        )
        plan = self._records.look(self.partial, "plan.json").keys
        if plan is None and "plan.json" not in self._work_names():  # removed since: another process begins
            return
        damaged = plan is None and any(UNIT.fullmatch(name) for name in names)
        if not damaged and not {"request", "files"} <= (plan or set()):
            raise InputError(
                f"{self.partial}: its plan.json is not of a conversion; move it away, or choose another --out"
            )

    def _check_result(self) -> None:
        content = self.out.read("meta.json")
        if content is not None or self._is_begun():
            names = self._result_names()
            refuse_strangers(self.out, names, lambda name: bool(RESULT.fullmatch(name)), f"--out {self.out}")
        if content is not None:
            keys = self._records.look(self.out, "meta.json").keys
            damaged = keys is None and "request" in (self._records.look(self.out, "conversion.json").keys or set())
            if not damaged and not (keys or set()) >= META_KEYS:
                raise InputError(
                    f"--out {self.out}: its meta.json is not of a conversion, so what is there was not made here and "
                    "is not replaced; choose another folder, or move it away"
                )

    def _result_names(self) -> list[str]:
        return sorted(self.out.sizes())

    def _work_names(self) -> set[str]:
        """Files and folders at the top of <out>.partial."""
        return {name.split("/")[0] for name in self.partial.sizes()}

    def _work_entries(self) -> list[str]:
        """All that lies in <out>.partial."""
        return sorted(self.partial.sizes())

    def is_complete(self, identity: dict[str, Any], files: Sequence[SourceFile], *, full: bool = False) -> bool:
        """Whether <out> is the finished result of this request.

        full: hash again what was read then, whatever the files' times. InputError when <out> is something else and may
        not be replaced.
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
        report = self._records.look(self.out, "conversion.json").begun
        if report is None or report.format != FORMAT or not report.finished:
            raise InputError(
                f"--out {self.out}: holds another conversion: one of an earlier version, or its conversion.json is "
                "damaged, so whether it is of this command is not known. It can be trained on as it is; choose "
                "another --out, or --overwrite to make it again."
            )
        changed = differences(report.request, identity)
        if not changed and not is_of(self.out, "conversion.json", iter(files)):
            changed = file_differences(list(rows(self.out, "conversion.json", "files")), versions(files))
            changed += asked_differences(report.request, identity) * bool(changed)
        if not changed:
            recorded = rows(self.out, "conversion.json", "reads")
            reads = ((files[place], read) for place, *found in recorded for read in found)
            changed = [f"  {name}: other bytes, of the same size" for name in edited(reads, full=full, say=say)]
        if changed:
            text = "\n".join(changed)
            raise InputError(
                f"--out {self.out}: holds another conversion\n{text}\n"
                "Choose another --out, or --overwrite to replace it."
            )
        return True

    def id_column(self, choose: Callable[[], tuple[str | None, str]]) -> tuple[str | None, str]:
        """What names documents and how to tell it: as the plan has it; without one, as it is judged now."""
        begun = self._begun()
        if self._overwrite or begun is None or "id_column" not in begun.request:
            return choose()
        name = begun.request["id_column"]
        how = f"column {name!r}, by their text where there is none" if name else "their text"
        return name, f"documents are identified by {how}, as when this was started"

    def _at_work(self) -> InputError:
        return InputError(f"{self.partial}: another conversion is at work there; wait for it, or choose another --out")

    def _open_plan(self, identity: dict[str, Any], files: Sequence[SourceFile], *, full: bool, alone: bool) -> None:
        """Resume from what <out>.partial holds if the same request began it. alone: nobody else is at work there."""
        if (file := self.partial.open("plan.json")) is not None:
            file.close()
            try:
                changed = self._changed(identity, files, full=full)
            except InputError as error:  # a unit is damaged
                changed = [str(error)]
            if changed and not self._overwrite:
                raise InputError("\n".join([f"{self.partial}: {changed[0]}", *changed[1:]]))
            if changed and not alone:
                raise self._at_work()
            if changed:
                self._clear()
                self.units = UnitStore(self.units.folder)
        self.partial.write("plan.json", streamed({"format": FORMAT, "request": identity}, file_rows(files)))

    def _changed(self, identity: dict[str, Any], files: Sequence[SourceFile], *, full: bool) -> list[str]:
        """Why the work cannot be resumed, in lines; none where it can."""
        old = self._begun()
        if old is None or old.format != FORMAT:
            cause = "was started by an earlier version of this project and cannot be resumed"
            if old is None and b'"request"' not in (self.partial.read("plan.json") or b""):
                cause = "its plan.json is damaged, so what was started there is not known"
            return [f"{cause}; {SAME}"]
        changed = differences(old.request, identity)
        cause = "started with other settings" if changed else "started with other files"
        fix = "Run it as it was started, or --overwrite to start again."
        if not changed and old.files != len(files):
            then = list(rows(self.partial, "plan.json", "files"))
            there = [[[name, "there"] for name, _ in part] for part in (then, versions(files))]
            changed = file_differences(*there)
            if len(files) < old.files:
                fix = f"Put back what is gone, or {WITHOUT_A_FILE}; or --overwrite to start again."
        if not changed:
            for file, name in self._done(files):
                if (before := self.units.mark(name)["file_version"]) != file.version:
                    line = f"  {file.name}: {how(before, file.version)}"
                    changed += [line] * (line not in changed)
            if not changed:
                reads = ((file, self.units.mark(name)["read"]) for file, name in self._done(files))
                changed = [f"  {name}: other bytes, of the same size" for name in edited(reads, full=full, say=say)]
        if not changed:
            return []
        typed = asked_differences(old.request, identity)
        return [
            cause,
            *changed[:6],
            *[f"  and {len(changed) - 6} more"] * (len(changed) > 6),
            *typed,
            fix,
        ]

    def _done(self, files: Sequence[SourceFile]) -> Iterator[tuple[SourceFile, str]]:
        """The units that are done, by their names, with their files."""
        return ((files[int(name.split("-")[0])], name) for name in self.units.names())

    def _clear(self) -> None:
        self.discard()

    def discard(self) -> None:
        """Remove the work, and nothing that another has put beside it."""
        names = [name for name in self.partial.sizes() if WORK.fullmatch(name.split("/")[0])]
        self.partial.delete([name for name in names if name not in WHOSE])
        for name in WHOSE:  # a kill in between leaves what says whose the rest is
            self.partial.delete([name])

    def discard_own(self, identity: dict[str, Any]) -> None:
        """Remove the work where it is of this request."""
        begun = self._begun()
        if begun is not None and begun.format == FORMAT and not differences(begun.request, identity):
            self.discard()
