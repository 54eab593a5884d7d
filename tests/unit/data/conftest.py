"""Small datasets of tokens that the tests make themselves."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from streaming import StreamingDataset

from moe.data.read.shared_prefix import with_a_free_number
from moe.data.text.encoders import HARD
from moe.data.text.order import shuffled_order
from moe.data.text.plain_ids import encode_plain
from moe.data.text.rows import document_hashes
from moe.data.text.train_tokenizer import train_tokenizer
from moe.data.write.request import Request
from moe.data.write.shards import ShardFormat

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


@contextmanager
def files_left(count: int) -> Iterator[None]:
    """This process may open so many files more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs", "while", "seven", "wizards", "quietly"]


def make_texts(count: int, seed: int = 0) -> list[str]:
    """Different little texts of 5 to 60 words; every tenth is a hard string."""
    random = np.random.default_rng(seed)
    texts = []
    for i in range(count):
        words = random.choice(WORDS, random.integers(5, 60))
        texts.append(HARD[i // 10 % len(HARD)] + f" {seed} {i}" if i % 10 == 9 else f"{i} " + " ".join(words))
    return texts


def write_parquet(
    path: Path, texts: list, *, ids: list | None = None, rows_per_group: int = 1000, **columns: list
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = [f"{path.stem}-{i}" for i in range(len(texts))] if ids is None else ids
    table = {"text": texts, "id": ids, **columns}
    pq.write_table(pa.table(table), path, row_group_size=rows_per_group)
    return path


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE of 400 tokens."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_parquet(folder / "text" / "a.parquet", make_texts(300))
    return train_tokenizer(dataset=str(folder / "text"), out=folder / "bpe", vocab_size=400)


@pytest.fixture
def make_request(tmp_path: Path, tokenizer_folder: Path):
    """A conversion request over `tmp_path`/text into `tmp_path`/out, with changes."""

    def make(**changes) -> Request:
        values = {
            "dataset": (str(tmp_path / "text"),),
            "config": None,
            "split": "train",
            "revision": None,
            "text_column": "text",
            "tokenizer": str(tokenizer_folder),
            "seq_len": 32,
            "out": tmp_path / "out",
            "val_fraction": 0.05,
            "seed": 17,
            "max_documents": None,
            "max_tokens": None,
            "workers": 1,
            "encoder": "auto",
            "overwrite": False,
            "skip_bad_files": False,
        }
        return Request(**{**values, **changes})

    return make


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Every file of a converted dataset but conversion.json, which names the encoder and the seconds."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "conversion.json")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def read_rows(folder: Path) -> np.ndarray:
    """All samples of a split in order, by stock StreamingDataset."""
    settings = {"batch_size": 1, "shuffle": False, "num_canonical_nodes": 1}
    dataset = with_a_free_number(partial(StreamingDataset, local=str(folder), **settings))
    return np.stack([dataset[i]["tokens"] for i in range(dataset.num_samples)])


def expected_split(tokenizer, units, *, seq_len, threshold, seed):
    """Blocks of both splits, built document by document in plain Python. `units`: (key, texts, ids)."""
    blocks, tails = {"train": [], "val": []}, {"train": [], "val": []}
    for key, texts, ids in units:
        hashes = document_hashes(pa.array(texts, pa.large_string()), pa.array(ids, pa.string()), seed)
        rows = encode_plain(tokenizer, texts)
        streams = {"train": [], "val": []}
        for i in shuffled_order(0, len(texts), seed=seed, unit=key):
            streams["val" if int(hashes[i]) < threshold else "train"] += [*rows[i], tokenizer.eos_token_id]
        for split, stream in streams.items():
            whole = len(stream) // seq_len * seq_len
            blocks[split] += stream[:whole]
            tails[split] += stream[whole:]
    result = {}
    for split in blocks:
        stream = blocks[split] + tails[split]
        result[split] = np.array(stream[: len(stream) // seq_len * seq_len], np.uint16).reshape(-1, seq_len)
    return result
