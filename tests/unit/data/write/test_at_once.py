"""Several processes that convert into one place at once: none harms what another makes."""

import contextlib
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from moe.common.errors import InputError
from moe.data.folders import LocalFolder
from moe.data.write import state
from moe.data.write.convert import convert
from moe.data.write.plan import Plan, make_plan
from tests.unit.data.conftest import folder_bytes, make_texts, write_parquet


@pytest.fixture
def text(tmp_path: Path) -> Path:
    for number in range(4):
        write_parquet(tmp_path / f"text/{number}.parquet", make_texts(30, seed=number))
    return tmp_path / "text"


@pytest.fixture
def merge_all(text, make_request):
    """The request of each task of an array whose shards are all done, with --merge-only added."""
    for index in range(2):
        convert(make_request(shard_index=index, num_shards=2))
    return [make_request(shard_index=index, num_shards=2, merge_only=True) for index in range(2)]


def test_a_second_merge_of_a_sharded_run_is_refused_while_one_works(merge_all, make_request, tmp_path, monkeypatch):
    """Both took the lock shared: <out> and its work were gone afterwards, exit code 0."""
    convert(make_request(out=tmp_path / "alone"))
    publish = state.LocalWorkspace.publish
    refused: list[str] = []

    def publish_beside_another(space: state.LocalWorkspace) -> None:
        with monkeypatch.context() as only_once:
            only_once.setattr(state.LocalWorkspace, "publish", publish)
            with pytest.raises(InputError) as caught:
                convert(merge_all[1])
        refused.append(str(caught.value))
        publish(space)

    monkeypatch.setattr(state.LocalWorkspace, "publish", publish_beside_another)
    convert(merge_all[0])
    assert len(refused) == 1 and "another conversion is at work there" in refused[0]
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "alone")
    assert not (tmp_path / "out.partial").exists()


def test_what_another_completed_meanwhile_is_left_as_it_is(merge_all, make_request, tmp_path, monkeypatch, capsys):
    """It waited for the lock, or had looked at <out> before: it began all over."""
    lock = state.LocalWorkspace.lock

    def lock_behind_another(space, *given, **more):
        monkeypatch.setattr(state.LocalWorkspace, "lock", lock)
        convert(merge_all[1])
        return lock(space, *given, **more)

    monkeypatch.setattr(state.LocalWorkspace, "lock", lock_behind_another)
    convert(merge_all[0])
    assert "nothing to do" in capsys.readouterr().out
    assert (tmp_path / "out/meta.json").exists() and not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(
    "gone", ["merged", "merged/meta.json", "merged/val/index.json", "merged/train/shard.00000.mds"]
)
def test_a_merge_that_lost_a_file_is_not_published(text, make_request, tmp_path, monkeypatch, gone):
    """On a file system without locks: half a dataset took the place of the one there was, the units were removed."""
    convert(make_request(max_documents=20))
    before = folder_bytes(tmp_path / "out")
    publish = state.LocalWorkspace.publish

    def lose(space: state.LocalWorkspace) -> None:
        path = tmp_path / "out.partial" / gone
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        publish(space)

    with monkeypatch.context() as losing:
        losing.setattr(state.LocalWorkspace, "publish", lose)
        with pytest.raises(InputError, match=rf"out\.partial/merged: .*{Path(gone).name if '/' in gone else ''}"):
            convert(make_request(overwrite=True))
    assert folder_bytes(tmp_path / "out") == before
    convert(make_request(overwrite=True))
    convert(make_request(out=tmp_path / "alone"))
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "alone")


def test_a_dataset_that_appeared_meanwhile_is_replaced_only_when_asked(text, make_request, tmp_path, monkeypatch):
    """Whatever else was written to <out> while this worked was removed."""
    convert(make_request(out=tmp_path / "other", seed=5))
    publish = state.LocalWorkspace.publish

    def appear(space: state.LocalWorkspace) -> None:
        shutil.copytree(tmp_path / "other", tmp_path / "out")
        publish(space)

    with monkeypatch.context() as appearing:
        appearing.setattr(state.LocalWorkspace, "publish", appear)
        with pytest.raises(InputError, match=r"--out .*out: .*appeared.*--overwrite"):
            convert(make_request())
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "other")
    convert(make_request(overwrite=True))
    convert(make_request(out=tmp_path / "alone"))
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "alone")


@pytest.fixture
def begun(text, make_request, tmp_path):
    """Work of an earlier conversion with another seed."""
    convert(make_request(shard_index=0, num_shards=2, seed=5))
    return tmp_path / "out.partial/units"


def opened(request) -> tuple[state.LocalWorkspace, Plan]:
    space = state.open_workspace(request.out, overwrite=request.overwrite)
    plan = make_plan(request, space)
    assert plan is not None
    return space, plan


def test_shards_that_start_at_the_same_moment_replace_old_work_once(begun, make_request, tmp_path, monkeypatch):
    """An array with --overwrite: both saw the old plan and removed its work, one under the feet of the other."""
    cleared: list[object] = []
    both = threading.Barrier(2)
    changed, clear = state.LocalWorkspace._changed, state.LocalWorkspace._clear

    def see(space, *given, **more):
        found = changed(space, *given, **more)
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(1)
        return found

    monkeypatch.setattr(state.LocalWorkspace, "_changed", see)
    monkeypatch.setattr(state.LocalWorkspace, "_clear", lambda space: cleared.append(space) or clear(space))
    starts = [opened(make_request(shard_index=index, num_shards=2, overwrite=True)) for index in range(2)]

    def start(space: state.LocalWorkspace, plan: Plan) -> int:
        with space.lock(plan.identity, plan.source.files, shared=True):
            with contextlib.suppress(threading.BrokenBarrierError):
                both.wait(1)  # both are at work
            return sum(space.units.done(unit) is not None for unit in plan.units)

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(lambda given: start(*given), starts)) == [0, 0]
    assert len(cleared) == 1 and not begun.exists()


def test_work_that_shards_are_at_is_not_replaced(begun, make_request):
    """--overwrite with other settings removed it, however many were at it."""
    space, plan = opened(make_request(shard_index=1, num_shards=2, seed=5))
    with space.lock(plan.identity, plan.source.files, shared=True):
        with pytest.raises(InputError, match="another conversion is at work there"):
            convert(make_request(shard_index=0, num_shards=2, overwrite=True))
        convert(make_request(shard_index=0, num_shards=2, seed=5, overwrite=True))  # the same one
    assert list(begun.iterdir())
    convert(make_request(shard_index=0, num_shards=2, overwrite=True))


def test_writers_of_one_file_may_have_one_process_number(tmp_path):
    """In containers most have: the slower one ended in FileNotFoundError."""
    folder = LocalFolder(tmp_path)

    def slowly():
        yield b"sl"
        folder.write("plan.json", b"fast")
        yield b"ow"

    folder.write("plan.json", slowly())
    assert folder.read("plan.json") == b"slow" and len(list(tmp_path.iterdir())) == 1
