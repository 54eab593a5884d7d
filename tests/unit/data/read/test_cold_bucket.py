"""The first batch from a bucket whose shards are many and whose cache is empty: what it asks for."""

import json

import pytest

import moe.common.s3
from benchmarks.sparse_bucket import BUCKET, SparseBucket
from moe.data import StreamSpec
from moe.data.locations import open_folder
from moe.data.write.shards import ShardFormat
from tests.unit.data.conftest import SEQ_LEN, numbered_rows
from tests.unit.data.read.loaders import loader_of

SHARDS, ROWS = 2100, 20


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """Shards that are links to one file, which is the least that makes three pages of a listing."""
    folder = tmp_path / "remote" / "data" / "train"
    folder.mkdir(parents=True)
    layout = ShardFormat(seq_len=SEQ_LEN, dtype="uint16")
    info = layout.write(folder / "shard.00000.mds", numbered_rows(ROWS))
    for number in range(1, SHARDS):
        (folder / f"shard.{number:05}.mds").hardlink_to(folder / "shard.00000.mds")
    layout.write_index(folder, [info] * SHARDS)
    server = SparseBucket(tmp_path / "remote")
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    moe.common.s3._client.cache_clear()
    yield server
    moe.common.s3._client.cache_clear()
    server.close()


def test_the_first_batch_needs_the_index_once_and_the_shards_of_the_window(bucket, tmp_path):
    loader = loader_of({"": StreamSpec(str(tmp_path / "cache"), f"s3://{BUCKET}/data", "train")})
    first = next(iter(loader))["tokens"][:, 0]
    assert all(1 <= row <= ROWS for row in first.tolist()) and len(loader.dataset) >= SHARDS * ROWS - 8
    shards = {name: count for name, count in bucket.requests.items() if name.endswith(".mds")}
    assert set(shards.values()) == {1} and len(shards) <= loader.dataset.window + 1
    assert bucket.requests["data/train/index.json"] == 1 and not any(
        name.startswith("list") for name in bucket.requests
    )
    sizes = open_folder(f"s3://{BUCKET}/data/train").sizes()
    assert bucket.requests["list data/train/"] == 3
    entries = json.loads((tmp_path / "cache" / "train" / "index.json").read_text())["shards"]
    assert {entry["raw_data"]["basename"]: entry["raw_data"]["bytes"] for entry in entries}.items() <= sizes.items()
