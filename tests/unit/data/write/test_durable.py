"""After a power cut: what a conversion has noted as done is on the disk, content before names, names before what speaks
of them. The calls of a conversion are held against that, file by file.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from moe.common import durable
from moe.data import folders
from moe.data.write import items
from moe.data.write.convert import convert
from moe.data.write.shards import ShardFormat
from tests.unit.data.conftest import folder_bytes, make_texts, write_parquet


class Disk:
    """What of the files made since is on the disk, by inode. Every name that appears is looked at; `wrong` says why a
    power cut at that moment would leave it torn, or what speaks of it without it.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.safe: set[int] = set()  # contents, and folders whose names are
        self.wrong: list[str] = []
        self.named: list[str] = []
        self.plain: dict[str, Callable] = {name: getattr(os, name) for name in ("fsync", "rename", "link", "unlink")}
        for name in ("fsync", "rename", "link"):
            monkeypatch.setattr(os, name, getattr(self, name))
        monkeypatch.setattr(shutil, "rmtree", self._removing(shutil.rmtree))

    def fsync(self, descriptor: int) -> None:
        self.plain["fsync"](descriptor)
        self.safe.add(os.fstat(descriptor).st_ino)

    def rename(self, source, target) -> None:
        source, target = Path(source), Path(target)
        if not target.parent.name.startswith(".") and target.name != "replaced":  # else inside of a scratch folder
            self._look(source, target)
        self.plain["rename"](source, target)
        self.safe.discard(target.parent.stat().st_ino)

    def link(self, source, target) -> None:
        self._look(Path(source), Path(target))
        self.plain["link"](source, target)
        self.safe.discard(Path(target).parent.stat().st_ino)

    def _look(self, source: Path, target: Path) -> None:
        self.named.append(target.name)
        parts = [source, *source.rglob("*")] if source.is_dir() else [source]
        self.wrong += [f"{target}: {part.name} is not" for part in parts if part.stat().st_ino not in self.safe]
        if target.name in ("meta.json", "out") or target.parent.name == "units":  # that all before it is there
            above = [target.parent.parent] if target.name == "meta.json" else []
            others = [path for path in target.parent.iterdir() if path.is_dir() and path.name in ("train", "val")]
            unsafe = [path for path in [*above, *others] if path.stat().st_ino not in self.safe]
            self.wrong += [f"{target}: names in {path.name} are not" for path in unsafe]

    def _removing(self, plain: Callable) -> Callable:
        def rmtree(path, *given, **more) -> None:
            out = Path(path).parents[1] / "out"
            if Path(path).name == "units" and out.parent.stat().st_ino not in self.safe:
                self.wrong.append("units are removed before the name of their result is safe")
            plain(path, *given, **more)

        return rmtree


@pytest.fixture
def disk(monkeypatch, tmp_path) -> Disk:
    monkeypatch.setitem(ShardFormat.__init__.__kwdefaults__, "size_limit", 2500)
    for number in range(4):
        write_parquet(tmp_path / "text" / f"{number}.parquet", make_texts(60, seed=number))
    return Disk(monkeypatch)


def test_all_that_a_conversion_names_is_safe_before_it_is_named(disk: Disk, make_request, tmp_path: Path) -> None:
    convert(make_request())
    assert disk.wrong == []
    assert {"plan.json", "merging.json", "index.json", "conversion.json", "meta.json", "out"} <= set(disk.named)
    assert sum(name.startswith("0000") for name in disk.named) == 4, "the units"
    assert sum(name.startswith("shard.") for name in disk.named) >= 8, "linked and packed"


def test_units_that_are_made_together_and_by_shards_are_safe(
    disk: Disk, make_request, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(items, "MANY", 2)
    monkeypatch.setattr(items, "ITEM_FILES", 2)
    for index in range(2):
        convert(make_request(shard_index=index, num_shards=2))
        assert (tmp_path / "out.partial" / "units").stat().st_ino in disk.safe, "the name of a unit that is done"
    made = list(disk.named)
    assert disk.wrong == [] and sum(name.startswith("0000") for name in made) == 2 and "meta.json" not in made
    convert(make_request(merge_only=True))
    assert disk.wrong == [] and "out" in disk.named


def test_without_hard_links_a_copy_is_complete_and_safe_before_it_has_its_name(
    disk: Disk, make_request, tmp_path: Path, monkeypatch
) -> None:
    convert(make_request(out=tmp_path / "linked"))

    def no_links(source, target) -> None:
        raise OSError(errno.EPERM, "no links")

    monkeypatch.setattr(os, "link", no_links)
    convert(make_request())
    assert disk.wrong == [] and folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "linked")


def test_folders_above_are_safe_and_a_file_system_that_syncs_no_folders_is_taken(tmp_path, monkeypatch) -> None:
    synced: list[int] = []
    with monkeypatch.context() as watched:
        watched.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
        folders.LocalFolder(tmp_path / "a" / "b").write("c/plan.json", b"{}")
    assert [path.stat().st_ino for path in (tmp_path, tmp_path / "a", tmp_path / "a" / "b")] == synced[:3]

    def refused(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", refused)
    durable.sync_folder(tmp_path)
    with pytest.raises(OSError, match="Input/output"):
        folders.LocalFolder(tmp_path).write("d.json", json.dumps({}).encode())
    assert not (tmp_path / "d.json").exists(), "what the disk has refused has no name"
