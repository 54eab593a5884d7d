"""Checkpoints that several ranks write together, where a disk is full, a rank dies, or machines share no folder."""

import errno
import multiprocessing
import os
import signal
from functools import partial
from pathlib import Path

import pytest
import torch

from moe.common.errors import RunFailed
from moe.train.checkpointing import files, together
from moe.train.checkpointing.checkpoints import newest_checkpoint, read_checkpoint, step_folders
from moe.train.checkpointing.contents import full_content
from moe.train.checkpointing.parts import part_name
from moe.train.checkpointing.remote import RemoteRun
from moe.train.checkpointing.save_error import SaveError
from tests.ranks import _rank, on_ranks
from tests.unit.train.checkpointing.ranks_that_share import assert_same, build, complete, save, step, tensors_of

pytestmark = pytest.mark.skipif(
    torch.__version__ < "2.11", reason="older torch is refused: moe.train.distributed.sharding"
)


def failing(folder: Path, rank: int) -> None:
    model, optimizer = build(1, 2)
    step(model, optimizer, 1)
    save(folder, 1, model, optimizer)
    for broken, stage in ((1, "write_part"), (0, "write_state"), (0, "commit")):
        plain = getattr(together, stage)

        def full(*args, broken=broken, plain=plain, stage=stage):
            if rank == broken and stage == "commit":
                raise OSError(errno.ENOSPC, "No space left on device")
            if rank == broken:  # the kernel says so, of the bytes that are written
                file = args[0] / "state.pt" if stage == "write_state" else args[0]
                file.symlink_to("/dev/full")
            return plain(*args)

        setattr(together, stage, full)
        with pytest.raises(SaveError, match=f"step 2 was not written to .*: rank {broken}: the disk is full"):
            save(folder, 2, model, optimizer)
        setattr(together, stage, plain)
        torch.distributed.barrier()
        assert [path.name for path in folder.iterdir() if "step" in path.name] == ["step-00000001"], stage
    save(folder, 2, model, optimizer)
    assert read_checkpoint(folder / "step-00000002").step == 2


def test_a_disk_that_is_full_for_one_rank_fails_the_save_on_all_and_leaves_nothing(tmp_path: Path) -> None:
    on_ranks(2, partial(failing, tmp_path))


def killed(folder: Path, rank: int) -> None:
    model, optimizer = build(1, 2)
    step(model, optimizer, 1)
    save(folder, 1, model, optimizer)
    plain, pieces = files.SteadyFile.write, []

    def dies(self, content):
        pieces.append(content)
        if len(pieces) < 4:
            return plain(self, content)
        plain(self, content[: len(content) // 2])
        self.flush()
        (folder / "half").write_text(str(os.fstat(self.file.fileno()).st_size))
        os.kill(os.getpid(), signal.SIGKILL)

    if rank == 1:
        files.SteadyFile.write = dies
    with pytest.raises(RuntimeError, match="by peer"):
        save(folder, 2, model, optimizer)
    (folder / "raised").touch()
    os._exit(0)


def test_a_rank_that_is_killed_as_it_writes_its_part_ends_the_save_on_the_others(tmp_path: Path) -> None:
    context, store = multiprocessing.get_context("fork"), f"file://{tmp_path}/store"
    ranks = [context.Process(target=_rank, args=(rank, partial(killed, tmp_path), 2, store)) for rank in range(2)]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join(60)
    assert [each.exitcode for each in ranks] == [0, -signal.SIGKILL]
    half = int((tmp_path / "half").read_text())
    assert 5000 < half < (tmp_path / "step-00000001" / part_name(1)).stat().st_size
    assert (tmp_path / "raised").exists() and not list(tmp_path.glob(".writing-*/*")), "the others remove it"
    found, _ = newest_checkpoint(step_folders(tmp_path))
    assert found is not None and found.step == 1


def apart(folder: Path, url: str, rank: int) -> None:
    """Each rank a machine of its own."""
    own = folder / f"machine{rank}"
    model, optimizer = build(1, 2)
    step(model, optimizer, 1)
    with pytest.raises(RunFailed, match="is another folder here than on the first machine"):
        save(own, 1, model, optimizer, leader=True)
    assert not list(own.glob("*step*"))
    torch.distributed.barrier()
    own.mkdir(exist_ok=True)
    (own / ".writing-step-00000001").mkdir(exist_ok=rank == 0)  # a killed save has left it
    (own / ".writing-step-00000001/state.pt").touch()
    assert save(own, 2, model, optimizer, url=url, leader=True).keeps_house
    assert not list(own.glob("step*"))
    expected = complete(model, optimizer)
    if rank == 0:
        torch.save(expected, folder / "expected")
    else:
        assert not list(own.glob(".writing*"))


def late(folder: Path, url: str, rank: int) -> None:
    """Each rank a machine of its own, on a network file system that shows new names late."""
    together.MACHINES = 2
    plain, looks = together._identity, [0]

    def identity(path: Path) -> tuple[int, int]:
        looks[0] += 1
        return plain(path) if rank == 0 or looks[0] > 3 else (0, 0)

    together._identity = identity
    model, optimizer = build(1, 2)
    step(model, optimizer, 1)
    save(folder, 1, model, optimizer, leader=True)
    looks[0] = 0
    upload, exists = together.RemoteFolder.upload, Path.exists

    def shown(path: Path) -> bool:
        if "step-00000002/shard" in str(path):
            looks[0] += 1
        return looks[0] > 5 and exists(path)

    def send(self, path: Path, name: str) -> None:
        if rank == 1 and "shard" in name:
            assert looks[0] > 5, "renamed by rank 0 a moment ago"
        upload(self, path, name)

    Path.exists, together.RemoteFolder.upload = (shown if rank == 1 else exists), send
    assert not save(folder, 2, model, optimizer, url=url, leader=True).anew


def test_a_file_system_that_shows_a_new_folder_late_is_a_shared_one_all_the_same(tmp_path: Path, bucket: str) -> None:
    """Every such save failed, or on s3 took the folder for another."""
    url = f"{bucket}/run"
    RemoteRun(url, tmp_path, report=print).claim({"session": None})
    on_ranks(2, partial(late, tmp_path, url))
    assert [read_checkpoint(path).step for path in step_folders(tmp_path)] == [1, 2]
    assert RemoteRun(url, tmp_path, report=print).steps() == [2] and not list(tmp_path.glob(".writing*"))


def test_machines_without_a_common_folder_save_on_s3_alone_each_its_own_part(tmp_path: Path, bucket: str) -> None:
    url = f"{bucket}/run"
    RemoteRun(url, tmp_path, report=print).claim({"session": None})
    on_ranks(2, partial(apart, tmp_path, url))
    remote = RemoteRun(url, tmp_path / "third", report=print)
    assert remote.steps() == [2]
    assert_same(tensors_of(full_content(remote.fetch(2))), torch.load(tmp_path / "expected"))
