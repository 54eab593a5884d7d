"""Names from outside are no paths, at every entry: a bucket's keys, indexes, manifests, listings."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from moe.common.errors import InputError
from moe.common.untrusted_names import OutsideName, path_below, plain_name
from moe.data.hub import HubEntry, Listing
from moe.data.read.loader import open_stream
from moe.data.read.mixture import StreamSpec
from moe.data.read.verify import read_samples, verify_split
from moe.train.checkpointing.checkpoints import CheckpointError, newest_checkpoint, read_checkpoint
from moe.train.checkpointing.remote import RemoteRun
from moe.use.export.hf_weights import opened
from tests.unit.data.conftest import numbered_rows, write_split

BAD = ["/etc/x", "../x", "a/../../x", "a//b", "./a", "", "a\\b", "a\0b", "a\x1b[2J", "a\x9bb", "a" * 300, "\ud800"]


@pytest.mark.parametrize("name", BAD)
def test_a_name_that_is_no_file_below_its_folder_is_refused_and_shown_harmlessly(name: str, tmp_path: Path) -> None:
    """S1: one function makes a path of a name."""
    with pytest.raises(OutsideName, match=r"^here: the name ") as caught:
        path_below(tmp_path, name, "here")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["a", "a/b.c", "..a", "a..", "...", "step-1/é 你#?%{}:", "-rf", "~"])
def test_odd_names_of_files_are_names(name: str, tmp_path: Path) -> None:
    """S1: only what leads elsewhere is refused."""
    assert path_below(tmp_path, name, "here") == tmp_path / name


def test_an_id_has_one_part() -> None:
    """S1: an id becomes a part of a name of ours."""
    assert plain_name("1f", "run.json") == "1f"
    with pytest.raises(OutsideName, match=r"run\.json: the name 'a/b' is refused"):
        plain_name("a/b", "run.json")


class Store:
    """A bucket in memory, that says which keys were fetched."""

    url = "s3://somebody/run"

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.fetched = files, []

    def list(self, under: str = "") -> dict[str, int]:
        return {name: len(content) for name, content in self.files.items() if name.startswith(under)}

    def read(self, name: str) -> bytes | None:
        return self.files.get(name)

    def download(self, name: str, path: Path) -> None:
        self.fetched.append(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.files[name])


def remote(files: dict[str, bytes], local: Path) -> RemoteRun:
    run = RemoteRun("s3://somebody/run", local, report=lambda line: None)
    run.store = Store(files)
    return run


@pytest.mark.parametrize("key", ["tensorboard/../../../escaped.txt", "stacks//x", "tensorboard/\x1b]0;x\x07"])
def test_keys_of_a_run_on_s3_are_refused_before_any_log_is_fetched(key: str, tmp_path: Path) -> None:
    """S1: a start from another machine wrote such a key's file three folders above the run folder."""
    run = remote({"run.json": b'{"session": "1"}', "metrics.jsonl": b"", key: b"boo"}, tmp_path / "a" / "b" / "run")
    with pytest.raises(InputError, match=r"s3://somebody/run: the name .* is refused"):
        run.fetch_logs()
    assert run.store.fetched == [] and list(tmp_path.rglob("*")) == []


def test_keys_of_a_checkpoint_on_s3_are_refused_before_any_is_fetched(tmp_path: Path) -> None:
    """S1: the same of a checkpoint's files."""
    step = "step-00000002"
    run = remote({f"{step}/manifest.json": b"{}", f"{step}/../../evil": b"boo"}, tmp_path / "run")
    with pytest.raises(InputError, match=rf"s3://somebody/run/{step}: the name '../../evil' is refused"):
        run.fetch(2)
    assert run.store.fetched == []


def test_a_folder_on_s3_that_is_named_like_a_step_is_no_step(tmp_path: Path) -> None:
    """S1: a key without a number ended in a traceback."""
    names = ["step-00000002/manifest.json", "step-old/manifest.json", "step-2/manifest.json", "step-00000003/state.pt"]
    assert remote(dict.fromkeys(names, b""), tmp_path).steps() == [2]


@pytest.mark.parametrize("name", ["../other/state.pt", "/etc/hostname", "a\nb"])
def test_a_manifests_file_names_are_refused(name: str, tmp_path: Path) -> None:
    """S1: a manifest may be another's."""
    folder = tmp_path / "step-00000001"
    folder.mkdir()
    manifest = {"step": 1, "tokens": 1, "config": {}, "data": "", "eos_id": 0, "vocab_size": 1}
    files = {"state.pt": {"bytes": 0, "xxh64": "ef46db3751d8e999"}, name: {"bytes": 1, "xxh64": "0"}}
    (folder / "state.pt").touch()
    (folder / "manifest.json").write_text(json.dumps({**manifest, "files": files}))
    with pytest.raises(CheckpointError, match=r"manifest\.json: the name .* is refused"):
        read_checkpoint(folder)
    found, errors = newest_checkpoint([folder])  # told like any other damage, no traceback
    assert found is None and "is refused" in str(errors[0])


def evil_split(folder: Path, name: str) -> Path:
    """A split whose index names a shard elsewhere, which is there."""
    write_split(folder, numbered_rows(40), size_limit=100_000)
    index = json.loads((folder / "index.json").read_text())
    index["shards"][0]["raw_data"]["basename"] = name
    (folder / "index.json").write_text(json.dumps(index))
    target = Path(os.path.normpath(folder / name))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes((folder / "shard.00000.mds").read_bytes())
    return folder


@pytest.mark.parametrize("name", ["../../secret.mds", "sub//shard.mds"])
def test_the_names_in_an_index_are_refused_by_every_reader_of_it(name: str, tmp_path: Path) -> None:
    """S1: Streaming joins an index's names to the paths it reads, writes and removes."""
    folder = evil_split(tmp_path / "data" / "train", name)
    assert len(errors := verify_split(folder)) == 1 and "is refused" in errors[0]
    with pytest.raises(InputError, match=r"index\.json: the name .* is refused"):
        read_samples(folder, 0, 1)
    with pytest.raises(InputError, match="is refused"):
        open_stream(StreamSpec(local=str(folder.parent), remote=None, split="train", proportion=None))
    with pytest.raises(InputError, match=r"index\.json: the name .* is refused"):  # before a shard is fetched
        open_stream(StreamSpec(local=str(tmp_path / "own"), remote=str(folder.parent), split="train", proportion=None))
    assert [path.name for path in (tmp_path / "own" / "train").iterdir()] == ["index.json"]


def test_the_names_in_a_listing_are_refused_where_an_address_is_made_of_one() -> None:
    """S1: `..` in an address would be another dataset's file."""
    listing = Listing("some/plain", "abc", [])
    entry = HubEntry("../../../other/private/resolve/main/a.txt", 1, None, None)
    with pytest.raises(InputError, match=r"the listing of some/plain: the name .* is refused"):
        listing.url_path(entry)


def test_the_names_in_an_index_of_weights_are_refused(tmp_path: Path) -> None:
    """S1: an export of somebody else's names its files, too."""
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    with pytest.raises(OutsideName, match=r"'../x\.safetensors' is refused"), opened(tmp_path):
        pass


def test_a_folder_that_a_console_made_on_a_bucket_is_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """S1: its key ends with a slash."""
    import moe.common.s3

    page = {"Contents": [{"Key": "run/", "Size": 0}, {"Key": "run/stacks/", "Size": 0}, {"Key": "run/a", "Size": 3}]}
    pages = SimpleNamespace(paginate=lambda **_: [page])
    monkeypatch.setattr(moe.common.s3, "client", lambda: SimpleNamespace(get_paginator=lambda _: pages))
    assert moe.common.s3.RemoteFolder("s3://somebody/run").list() == {"a": 3}


def test_rows_of_a_split_with_plain_names_are_still_read(tmp_path: Path) -> None:
    """S1: nothing changes for whom it does not concern."""
    folder = write_split(tmp_path / "train", numbered_rows(9))
    assert verify_split(folder, full=True) == [] and np.array_equal(read_samples(folder, 0, 9), numbered_rows(9))
