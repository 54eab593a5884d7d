"""A checkpoint that several ranks write: each its own part (parts.py), rank 0 what is the same on all.

Decisions:
- It is complete or not there for all ranks alike: after each stage they exchange whether it succeeded, and where it did
  not on one, all raise that one's error. Rank 0 writes the manifest when all parts are on the disk, then renames.
- They talk over a gloo group of their own: this runs in a thread beside training, whose collectives are others.
- A rank sees the folder that rank 0 has made: then it writes there, as one machine or a shared filesystem has it. On
  another machine without one only s3 can hold a checkpoint: each machine writes its parts aside, its ranks upload them,
  rank 0 the rest, the manifest last, and nothing stays on the machines. Without s3 the save fails.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch.distributed as dist

from moe.common import ownership
from moe.common.errors import RunFailed
from moe.common.s3 import RemoteFolder
from moe.train.checkpointing.checkpoints import (
    KIND,
    MANIFEST,
    SAVED_MARK,
    STATE,
    commit,
    folder_name,
    make_aside,
    write_manifest,
    write_state,
)
from moe.train.checkpointing.files import File
from moe.train.checkpointing.parts import Divided, Part, describe, joined, part_name, write_part
from moe.train.checkpointing.remote import RemoteRun
from moe.train.checkpointing.retention import remove_checkpoint
from moe.train.distributed.ranks import MACHINES
from moe.train.distributed.same_folder import shows

LONGEST_WAIT = datetime.timedelta(minutes=30)  # for the slowest rank's stage: a write, an upload
T = TypeVar("T")


class Save(NamedTuple):
    """What one rank brings to a save.

    Attributes:
        part: None where this rank writes none, as another replica's does.
        number: of its part, from 0.
        parts: how many there are.
        shapes: of the complete tensors.
        content: of state.pt; None but on rank 0.
        more: files that stand beside it, by their path in the checkpoint's folder.
    """

    step: int
    part: Part | None
    number: int
    parts: int
    shapes: dict[str, list[int]]
    content: dict[str, Any] | None
    manifest: dict[str, Any]
    more: Mapping[str, bytes]


class Written(NamedTuple):
    """anew: the run folder was not there. keeps_house: this rank removes older checkpoints of the folder it sees."""

    anew: bool
    keeps_house: bool


class Explain(Protocol):
    def __call__(self, error: Exception, *, kept: Path | None) -> RunFailed: ...


class SharedWriter:
    """Args:
    url: s3://bucket/prefix of the run, if it is there. remote: that, on rank 0.
    local_leader: whether this is the first rank of its machine.

    Every rank must make it, and call `write`, at the same point.
    """

    def __init__(
        self,
        save_folder: Path,
        *,
        url: str | None,
        remote: RemoteRun | None,
        local_leader: bool,
    ):
        self.save_folder = save_folder
        self.url = url
        self.remote = remote
        self.local_leader = local_leader
        self.waits = MACHINES > 1  # for a network file system to show what another machine has written
        self.group = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
        self.rank = dist.get_rank()

    def write(self, save: Save, saved: Callable[[int], None], explain: Explain) -> Written:
        """saved: called on rank 0 when all is written, with the checkpoint's bytes. explain: what to raise for an error
        on this rank.

        Raises:
            RunFailed: on every rank alike; nothing of this save is left then, and earlier ones are untouched.
            RuntimeError: a rank is gone.
        """
        names = [STATE, *map(part_name, range(save.parts)), *save.more, MANIFEST]
        made: list[Path] = []
        try:
            return self._write(save, names, made, saved, explain)
        except BaseException:
            for aside in made:
                with contextlib.suppress(OSError):
                    ownership.remove_files(aside, [*names, ownership.MARK])
            raise

    def _write(
        self, save: Save, names: list[str], made: list[Path], saved: Callable[[int], None], explain: Explain
    ) -> Written:
        def begin() -> tuple[str, tuple[int, int], bool]:
            anew = not self.save_folder.is_dir()
            made.append(make_aside(self.save_folder, "writing", save.step))
            ownership.begin(made[0], KIND, names)
            return made[0].name, _identity(made[0]), anew

        stage = partial(self._stage, partial(explain, kept=None))
        name, identity, anew = stage(begin if self.rank == 0 else lambda: ("", (0, 0), False))[0]
        aside = self.save_folder / name

        def sees() -> bool:
            return _identity(aside) == identity

        seen = stage(lambda: shows(sees) if self.waits else sees())
        shared = all(seen)
        self.waits = shared and MACHINES > 1  # a folder that is not shared does not become so
        if not shared:
            stage(lambda: self._begin_apart(aside, names, made, seen[self.rank]))
        written = stage(lambda: self._write_own(save, aside))
        files: dict[str, File] = {name: file for found, _ in written for name, file in found.items()}
        manifest = {**save.manifest, "tensors": joined([tensors for _, tensors in written])}

        def finish() -> None:
            if shared:
                commit(aside, self.save_folder, save.step, manifest, files)
                made.clear()
            else:
                write_manifest(aside, save.step, manifest, files)
                (self.save_folder / SAVED_MARK).touch()
            saved(sum(file["bytes"] for file in files.values()))

        stage(finish if self.rank == 0 else lambda: None)
        folder = self.save_folder / folder_name(save.step) if shared else aside
        if self.url is not None:
            self._upload(save, folder, list(files), partial(explain, kept=folder if shared else None))
        if not shared:
            for own in made:
                ownership.remove_files(own, [*names, ownership.MARK])
        return Written(anew, self.rank == 0 or (self.local_leader and not shared))

    def _begin_apart(self, aside: Path, names: list[str], made: list[Path], seen: bool) -> None:
        """This machine's own folder for its parts."""
        if self.url is None:
            if not seen:
                raise RunFailed(
                    f"save_folder ({self.save_folder}) is another folder here than on the first machine, and a "
                    "checkpoint has a part of each; give one on a filesystem that all machines share, or s3://"
                )
            return
        if self.local_leader and not seen:
            for left in [*self.save_folder.glob(".writing-step-*"), *self.save_folder.glob(".fetching-step-*")]:
                remove_checkpoint(left)  # a killed start's, which only the first machine's next start clears
            made.append(aside)
            aside.mkdir(parents=True)
            ownership.begin(aside, KIND, names)

    def _write_own(self, save: Save, aside: Path) -> tuple[dict[str, File], dict[str, Divided]]:
        files: dict[str, File] = {}
        tensors: dict[str, Divided] = {}
        if save.part is not None:
            name = part_name(save.number)
            tensors = describe(save.part, save.shapes, name)
            files[name] = write_part(aside / name, save.part)
        if save.content is not None:
            files |= write_state(aside, save.content, save.more)
        return files, tensors

    def _upload(self, save: Save, folder: Path, files: list[str], explain: Callable[[Exception], RunFailed]) -> None:
        shares = [part_name(number) for number in range(save.parts)]

        def announce() -> None:
            if self.remote is not None:
                self.remote.announce(save.step, files)

        def send() -> None:
            if save.part is not None and self.url is not None:
                name = part_name(save.number)
                if self.waits:
                    shows((folder / name).exists)  # it was renamed by rank 0
                RemoteFolder(self.url).upload(folder / name, f"{folder_name(save.step)}/{name}")

        def complete() -> None:
            if self.remote is not None:
                self.remote.complete(folder, save.step, [file for file in files if file not in shares])

        for call in (announce, send, complete):
            self._stage(explain, call)

    def _stage(self, explain: Callable[[Exception], RunFailed], call: Callable[[], T]) -> list[T]:
        """What `call` gives on each rank. Raises what it raised on the first on which it failed."""
        error: RunFailed | None = None
        result: Any = None
        try:
            result = call()
        except Exception as failed:
            error = explain(failed)
        answers: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(answers, (error, result), group=self.group)
        if errors := [found for found, _ in answers if found is not None]:
            raise errors[0]
        return [result for _, result in answers]


def _identity(folder: Path) -> tuple[int, int]:
    """Of a folder's mark, the same on all machines that share it; zeros where there is none."""
    try:
        stat = (folder / ownership.MARK).stat()
    except OSError:
        return 0, 0
    return stat.st_ino, stat.st_mtime_ns
