import json

import numpy as np
import pytest
from streaming import MDSWriter

from moe.data import verify_split
from moe.data.write.shards import ShardFormat
from tests.unit.data.conftest import folder_bytes, write_split


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
@pytest.mark.parametrize("count", [1, 14, 15, 100])
def test_folder_is_byte_equal_to_mdswriters(tmp_path, dtype, count):
    rows = np.random.default_rng(0).integers(0, 60000, (count, 33)).astype(dtype)
    write_split(tmp_path / "ours", rows, size_limit=2000)
    with MDSWriter(
        columns={"tokens": f"ndarray:{dtype}:33"}, out=str(tmp_path / "theirs"), hashes=["xxh64"], size_limit=2000
    ) as writer:
        for row in rows:
            writer.write({"tokens": row})
    assert folder_bytes(tmp_path / "ours") == folder_bytes(tmp_path / "theirs")


def test_sequence_too_long_for_a_shard_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        ShardFormat(seq_len=1 << 26, dtype="uint16")


@pytest.fixture
def split(tmp_path):
    return write_split(tmp_path / "train", np.arange(64 * 16, dtype=np.uint16).reshape(64, 16), size_limit=1000)


def test_sound_split_has_no_errors(split):
    assert verify_split(split) == verify_split(split, full=True) == []


def test_flipped_byte_is_found_by_the_hash_only(split):
    path = split / "shard.00001.mds"
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)
    assert verify_split(split) == []
    (error,) = verify_split(split, full=True)
    assert "shard.00001.mds: its bytes changed" in error


def test_missing_and_short_shards_are_named(split):
    (split / "shard.00000.mds").unlink()
    short = split / "shard.00001.mds"
    short.write_bytes(short.read_bytes()[:-1])
    missing, truncated = verify_split(split)
    assert "shard.00000.mds: missing" in missing
    assert "shard.00001.mds" in truncated and "index.json says" in truncated


@pytest.mark.parametrize("content", [None, "{", json.dumps({"version": 2})])
def test_missing_or_broken_index_is_named(split, content):
    (split / "index.json").unlink()
    if content is not None:
        (split / "index.json").write_text(content)
    (error,) = verify_split(split)
    assert "index.json" in error
