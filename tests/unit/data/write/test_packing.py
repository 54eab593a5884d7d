"""Documents to shards, across the buffer's end."""

import numpy as np
import pytest

from moe.data.read.verify import read_samples
from moe.data.write import packing
from moe.data.write.packing import BlockWriter
from moe.data.write.shards import ShardFormat


@pytest.mark.parametrize("longest", [3, 40, 2000])
def test_shards_and_rest_hold_the_documents_in_order_wherever_a_shard_ends(tmp_path, monkeypatch, longest):
    monkeypatch.setattr(packing, "BUFFER_TOKENS", 100)
    draw = np.random.default_rng(longest)
    documents = [draw.integers(0, 50000, draw.integers(0, longest + 1)).astype(np.uint16) for _ in range(400)]
    layout = ShardFormat(seq_len=16, dtype="uint16", size_limit=1000)
    writer = BlockWriter(tmp_path, "train", layout)
    for start in range(0, 400, 57):
        some = documents[start : start + 57]
        writer.add(some, np.array([len(document) for document in some]))
    writer.add([], np.empty(0, np.int64))
    rest = writer.finish()
    for i, info in enumerate(writer.shards):
        (tmp_path / f"train.{i:05}.mds").rename(tmp_path / f"shard.{i:05}.mds")
        assert info["samples"] == layout.samples_per_shard
    layout.write_index(tmp_path, writer.shards)
    rows = read_samples(tmp_path, 0, 1 << 30).reshape(-1) if writer.shards else np.empty(0, np.uint16)
    start = len(layout.header(layout.samples_per_shard))
    whole = np.concatenate(documents)
    assert len(rows) + rest == len(whole) and rest < layout.samples_per_shard * 16
    assert (np.concatenate([rows, np.fromfile(tmp_path / "train.rest", np.uint16, offset=start)]) == whole).all()
