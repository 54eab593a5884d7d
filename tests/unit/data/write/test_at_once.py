"""Several processes that convert into one place at once: none harms what another makes."""

import shutil
from pathlib import Path

import pytest

from moe.common.errors import InputError
from moe.data.write import state
from moe.data.write.convert import convert
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
