"""The copy of a run folder on s3://: what makes a run resume on another machine.

Training works in a local folder; after each checkpoint its files are uploaded, the manifest last, then the logs.

Decisions:
- A remote checkpoint is complete when its manifest.json is there; what is fetched is verified by it before use.
- One that does not verify, or that the run went back behind, stays: moe/train/checkpointing/hidden.py.
- A start changes nothing here before `claim`: looking, and fetching a checkpoint, only read.
- There is no lock on s3. Each start writes its own `session` into run.json; a process that finds another's there before
  an upload has been replaced, and stops without touching anything.
- Retention is the local one, applied to what is on the remote, whoever put it there: but only files that the
  checkpoint's mark or manifest lists are removed. The mark (.made.json) is uploaded first and removed last.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from moe.common import ownership
from moe.common.errors import RunFailed
from moe.common.s3 import RemoteError, RemoteFolder
from moe.common.typed_json import parse_json
from moe.common.units import clean_line
from moe.common.untrusted_names import path_below
from moe.train.checkpointing.checkpoints import (
    KIND,
    MANIFEST,
    STATE,
    TOKENIZER,
    Checkpoint,
    CheckpointError,
    Manifest,
    folder_name,
    has_files,
    make_aside,
    read_checkpoint,
    set_aside,
    step_folders,
)
from moe.train.checkpointing.hidden import hidden_manifests, hide, make_way
from moe.train.checkpointing.record import RUN_FILE
from moe.train.checkpointing.retention import remove_checkpoint, steps_to_remove

LOG_FILES = (RUN_FILE, "config.yaml", "metrics.jsonl", "events.jsonl", "alarms.jsonl")
LOGS = (*LOG_FILES, "tensorboard", "stacks", "callbacks", TOKENIZER)


class RemoteRun:
    """Args:
    url: s3://bucket/prefix of the run.
    local: the folder that the run works in.
    """

    def __init__(self, url: str, local: Path, *, report: Callable[[str], None]):
        self.store = RemoteFolder(url)
        self.local = local
        self.report = report
        self.session: str | None = None
        self._uploaded: dict[str, tuple[int, int]] = {}  # logs: name -> size, mtime in ns

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints on the remote, oldest first. Raises RemoteError."""
        found = [_step_of(name) for name in self.store.list("step-") if name.split("/")[1:] == [MANIFEST]]
        return sorted(step for step in found if step is not None)

    def record(self) -> dict[str, Any]:
        """The remote's run.json; empty where there is none. Raises RemoteError where it is damaged."""
        found = _parse(self.store.read(RUN_FILE) or b"{}")
        if found is None:
            raise RemoteError(f"{self.store.url}/{RUN_FILE} is damaged; restore it or remove it there")
        return found

    def fetch_logs(self) -> None:
        """The logs, so that they continue here; not run.json, which a start writes itself.

        Raises OutsideName, before anything is written, for a key that would become a path elsewhere.
        """
        names = [name for name in self.store.list() if name.split("/")[0] in LOGS and name != RUN_FILE]
        for name, path in [(name, path_below(self.local, name, self.store.url)) for name in names]:
            self.store.download(name, path)

    def manifest(self, step: int) -> dict[str, Any]:
        """What the manifest of a checkpoint says. Raises CheckpointError where it is damaged."""
        name = f"{folder_name(step)}/{MANIFEST}"
        try:
            return parse_json(self.store.read(name) or b"", Manifest)
        except ValueError as error:
            raise CheckpointError(f"{self.store.url}/{name}: cannot be read ({error})") from None

    def fetch(self, step: int, *, copy: bool = False, only: Collection[str] | None = None) -> Checkpoint:
        """Downloads one checkpoint, or `only` these files of it, complete or not at all. A `copy` keeps its mark, by
        which `fetch_copy` knows it; what is fetched comes into one that is here.

        Raises:
            CheckpointError: what arrived is not what its manifest says.
            OutsideName: a key there would become a path elsewhere; nothing has been fetched.
        """
        name, where = folder_name(step), f"{self.store.url}/{folder_name(step)}"
        self.report(f"fetching {name} from {self.store.url} ...")
        there = [file.removeprefix(f"{name}/") for file in self.store.list(f"{name}/")]
        for file in there:
            path_below(self.local, file, where)
        made = self.manifest(step)["files"]
        listed = [file for file in made if file in there]  # its reader names what is missing
        if only is not None:
            listed = [file for file in listed if file in only]
        aside = make_aside(self.local, "fetching", step)
        try:
            ownership.begin(aside, KIND, [*made])
            for file in [*listed, MANIFEST]:
                self.store.download(f"{name}/{file}", aside / file)
            found = read_checkpoint(aside, only=only)
            if _is_copy(self.local / name, found.manifest):
                self._add(aside, listed, self.local / name, copy)
            else:
                self._place(aside, self.local / name, copy)
        except BaseException:
            with contextlib.suppress(OSError):
                ownership.remove_files(aside, [*listed, MANIFEST, ownership.MARK])
            raise
        return Checkpoint(self.local / name, found.manifest)

    def _place(self, aside: Path, target: Path, copy: bool) -> None:
        if not copy:
            (aside / ownership.MARK).unlink()
        if os.path.lexists(target):
            self.report(
                f"{target.name}: the one in {self.local} is damaged or not the remote's; it stays as "
                f"{set_aside(target).name}"
            )
        aside.rename(target)

    def _add(self, aside: Path, names: Sequence[str], target: Path, copy: bool) -> None:
        """Into a copy that is here. Machines may share that folder, each with files of its own."""
        for name in names:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(aside / name, target / name)
        ownership.remove_files(aside, [*names, MANIFEST, ownership.MARK])
        if not copy:
            (target / ownership.MARK).unlink()

    def fetch_copy(self, wanted: Checkpoint, only: Collection[str] | None = None) -> None:
        """For a machine that only reads what the run resumes from: its very files, or `only` these, and no copy of an
        earlier one. What this machine has written itself, when it was the first, stays. Raises as `fetch` does.
        """
        for folder in step_folders(self.local):
            if ownership.carries_mark(folder, KIND) and not (
                folder.name == wanted.path.name and _is_copy(folder, wanted.manifest)
            ):
                remove_checkpoint(folder)
        if not has_files(wanted.path, wanted.manifest, only=only):
            self.fetch(wanted.step, copy=True, only=only)

    def leave_behind(self, after: int) -> None:
        """Checkpoints later than `after` are no part of the run any more."""
        for step in self.steps():
            if step > after:
                hide(self.store, folder_name(step), "left-behind")

    def claim(self, record: dict[str, Any]) -> None:
        """From here on this process is the one that writes: `record`, with its session, is the remote's run.json."""
        self.store.write(RUN_FILE, json.dumps(record, indent=1).encode())
        self.session = record["session"]

    def push(self, checkpoint: Path) -> None:
        """Uploads a checkpoint and the logs.

        Raises:
            Replaced: another process trains this run now.
            RemoteError: an upload failed; the checkpoint is not complete on the remote.
        """
        self._check_session()
        self.upload(checkpoint)
        self._upload_logs()

    def announce(self, step: int, files: Sequence[str]) -> None:
        """Marks the place of a checkpoint of which several ranks upload a file each. Raises as `push` does."""
        self._check_session()
        make_way(self.store, folder_name(step))
        self.store.write(f"{folder_name(step)}/{ownership.MARK}", ownership.mark(KIND, [*files]))

    def complete(self, folder: Path, step: int, files: Sequence[str]) -> None:
        """Uploads the last files of what was announced, the manifest behind them, then the logs. Raises as `push` does.

        folder: where these files lie.
        """
        self._check_session()
        for name in [*files, MANIFEST]:
            self.store.upload(folder / name, f"{folder_name(step)}/{name}")
        self._upload_logs()

    def retain(self, **rule: Any) -> list[str]:
        """Removes what `steps_to_remove` names by `rule`, and what a removal or an upload that broke off has left;
        returns, a line each, why others stay.

        Raises:
            RemoteError: the bucket takes no removal; the next call tries again.
        """
        held: dict[int, list[str]] = {}
        for name in self.store.list("step-"):
            if (step := _step_of(name)) is not None:
                held.setdefault(step, []).append(name)
        complete = [step for step, names in held.items() if f"{folder_name(step)}/{MANIFEST}" in names]
        # a set-aside- or left-behind- manifest is no part that is left over: these folders stay
        parts = [step for step, names in held.items() if not any(name.endswith(MANIFEST) for name in names)]
        gone = [*steps_to_remove(complete, **rule), *[step for step in parts if step < max(complete, default=0)]]
        return [reason for step in gone if (reason := self._remove(folder_name(step), held[step])) is not None]

    def _remove(self, folder: str, names: list[str]) -> str | None:
        """Removes a checkpoint, or returns why it stays. `names`: of all that is in it."""
        done, mark = f"{folder}/{MANIFEST}", f"{folder}/{ownership.MARK}"
        files = self._made_here(folder, names)
        if strange := sorted(
            {*names} - {f"{folder}/{file}" for file in files} - {done, mark, *hidden_manifests(folder)}
        ):
            more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
            return f"{self.store.url}/{clean_line(strange[0])}{more} was not made here"
        if mark not in names:
            self.store.write(mark, ownership.mark(KIND, files))
        self.store.delete(sorted({*names, mark}, key=lambda name: (name != done, name == mark)))
        return None

    def _made_here(self, folder: str, names: list[str]) -> list[str]:
        """As the mark or the manifest lists them; an earlier version's upload that broke off has neither."""
        if f"{folder}/{ownership.MARK}" in names:
            made = ownership.read_mark(self.store.read(f"{folder}/{ownership.MARK}") or b"")
            if made is not None and made["kind"] == KIND and made["files"]:
                return made["files"]
        with contextlib.suppress(ValueError):
            return list(parse_json(self.store.read(f"{folder}/{MANIFEST}") or b"", Manifest)["files"])
        return [STATE]

    def upload(self, checkpoint: Path) -> None:
        """One checkpoint: its mark, the files that its manifest lists, the manifest last."""
        files = list(read_checkpoint(checkpoint, hashes=False).manifest["files"])
        make_way(self.store, checkpoint.name)
        self.store.write(f"{checkpoint.name}/{ownership.MARK}", ownership.mark(KIND, files))
        for name in [*files, MANIFEST]:
            self.store.upload(checkpoint / name, f"{checkpoint.name}/{name}")

    def push_logs(self) -> None:
        """Raises as `push` does."""
        self._check_session()
        self._upload_logs()

    def _upload_logs(self) -> None:
        for part in LOGS:
            root = self.local / part
            for path in sorted(root.rglob("*")) if root.is_dir() else [root] * root.exists():
                stat = path.stat()
                if path.is_file() and self._uploaded.get(str(path)) != (stat.st_size, stat.st_mtime_ns):
                    self.store.upload(path, str(path.relative_to(self.local)))
                    self._uploaded[str(path)] = (stat.st_size, stat.st_mtime_ns)

    def _check_session(self) -> None:
        there = self.record()
        if there.get("session", self.session) != self.session:
            raise Replaced(
                f"{self.store.url}: the run was started again by pid {there.get('pid')} on {there.get('host')}, "
                "which trains it now; this process stops and has changed nothing there since"
            )


def is_share(folder: Path) -> bool:
    """Whether it is a copy with some files of a checkpoint alone, as `fetch_copy` leaves it."""
    if not ownership.carries_mark(folder, KIND):
        return False
    return any(not (folder / name).exists() for name in ownership.marked_files(folder, KIND) or ())


def _is_copy(folder: Path, manifest: dict[str, Any]) -> bool:
    """Whether `fetch` has made it, complete or in part, of the checkpoint with this manifest."""
    return ownership.carries_mark(folder, KIND) and has_files(folder, manifest, only=())


def _step_of(name: str) -> int | None:
    """The step of a checkpoint's file; None of one that only looks like it."""
    folder = name.split("/")[0]
    match = re.fullmatch(r"step-([0-9]{8,})", folder)
    return int(match[1]) if match and folder_name(int(match[1])) == folder else None


def _parse(content: bytes) -> dict[str, Any] | None:
    """None where it is no JSON object."""
    try:
        found = json.loads(content)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


class Replaced(RunFailed):
    """Another process has taken this run over."""
