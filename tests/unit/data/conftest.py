"""Small datasets of tokens that the tests make themselves."""

from pathlib import Path

import numpy as np
import pytest

from moe.data.shards import ShardFormat

SEQ_LEN = 16
EOS = 0


def write_split(folder: Path, rows: np.ndarray, *, size_limit: int = 4000) -> Path:
    """An MDS split of several small shards."""
    layout = ShardFormat(seq_len=rows.shape[1], dtype=str(rows.dtype), size_limit=size_limit)
    folder.mkdir(parents=True)
    infos = []
    for start in range(0, len(rows), layout.samples_per_shard):
        part = rows[start : start + layout.samples_per_shard]
        infos.append(layout.write(folder / f"shard.{len(infos):05}.mds", part))
    layout.write_index(folder, infos)
    return folder


def numbered_rows(count: int, seq_len: int = SEQ_LEN) -> np.ndarray:
    """Row i begins with i + 1, has an EOS somewhere, and is otherwise 7."""
    rows = np.full((count, seq_len), 7, np.uint16)
    rows[:, 0] = np.arange(1, count + 1)
    rows[np.arange(count), 3 + np.arange(count) % (seq_len - 4)] = EOS
    return rows


@pytest.fixture
def token_folder(tmp_path: Path) -> Path:
    """230 training samples in shards of about 100, 21 evaluation samples."""
    write_split(tmp_path / "data" / "train", numbered_rows(230))
    write_split(tmp_path / "data" / "val", numbered_rows(21))
    return tmp_path / "data"
