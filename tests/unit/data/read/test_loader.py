import gc
import itertools
import json
import os
import threading
import time
import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from streaming import StreamingDataset

from moe.common.errors import DataError, InputError
from moe.data import StreamSpec, build_eval_loader
from moe.data.read import batches
from moe.data.read.batches import Collate
from moe.data.read.shared_prefix import with_a_free_number
from tests.unit.data.conftest import EOS, SEQ_LEN, numbered_rows, write_split
from tests.unit.data.read.loaders import COMMON, begun, numbers, run_ranks, train_loader


def flat(lists):
    return list(itertools.chain.from_iterable(lists))


def test_epoch_holds_each_sample_once_and_next_epoch_another_order(token_folder):
    loader = train_loader(token_folder)
    first, second = numbers(loader), numbers(loader)
    for epoch in (first, second):
        rows = flat(epoch)
        assert len(rows) == len(set(rows)) == 230 // 8 * 8
    assert first != second


def test_order_is_the_same_with_and_without_workers_and_differs_by_seed(token_folder):
    plain = numbers(train_loader(token_folder))
    assert numbers(train_loader(token_folder, workers=2)) == plain
    assert numbers(train_loader(token_folder, seed=18)) != plain


def test_spawned_workers_give_the_same_order(token_folder):
    assert numbers(train_loader(token_folder, workers=1, multiprocessing_context="spawn")) == numbers(
        train_loader(token_folder)
    )


@pytest.mark.parametrize(("workers", "resumed_workers"), [(0, 0), (2, 0), (0, 2)])
def test_state_restores_the_exact_position(token_folder, workers, resumed_workers):
    whole = numbers(train_loader(token_folder))
    seen, state = begun(train_loader(token_folder, workers=workers), 9)
    resumed = train_loader(token_folder, workers=resumed_workers)
    resumed.load_state_dict(state)
    assert seen + numbers(resumed) == whole


def test_two_ranks_split_the_global_batches_of_one(token_folder):
    one = numbers(train_loader(token_folder, batch=8))
    _, state = begun(train_loader(token_folder), 5)
    first, second = run_ranks({"": [str(token_folder), None, "train"]}, ranks=2, batch=4, start=state)
    together = [sorted(a + b) for a, b in zip(first, second, strict=True)]
    assert together == [sorted(batch) for batch in one[5:]]


def test_two_ranks_repeat_no_sample_to_fill_the_last_batch(tmp_path):
    write_split(tmp_path / "train", numbered_rows(31))  # one more would make four global batches
    ranks = run_ranks({"": [str(tmp_path), None, "train"]}, ranks=2, batch=4)
    rows = flat(flat(ranks))
    assert len(rows) == len(set(rows)) == 24


def test_a_position_without_an_order_is_one_in_stocks_order_and_stays_one(token_folder, capsys):
    """Runs that earlier versions began."""
    of_stock = partial(
        StreamingDataset,
        local=str(token_folder),
        split="train",
        batch_size=8,
        shuffle=True,
        shuffle_algo="py1e",
        shuffle_seed=17,
        shuffle_block_size=1 << 18,
        num_canonical_nodes=1,
        epoch_size=224,
    )
    stock = with_a_free_number(of_stock)
    expected = [[sample["tokens"].tolist() for sample in stock] for _ in range(2)]
    del stock
    loader = train_loader(token_folder)
    loader.load_state_dict({"epoch": 0, "sample_in_epoch": 16, "num_canonical_nodes": 1, "shuffle_seed": 17})
    assert capsys.readouterr().out.count("keeps the order of sequences that it was started with (py1e)") == 1
    epochs = [[row for batch in loader for row in batch["tokens"].tolist()] for _ in range(2)]
    assert epochs == [expected[0][16:], expected[1]]
    assert "order" not in loader.state_dict()


def test_an_order_that_this_version_does_not_know_is_refused_by_name(token_folder):
    loader = train_loader(token_folder)
    position = {"epoch": 0, "sample_in_epoch": 0, "num_canonical_nodes": 1, "shuffle_seed": 17}
    with pytest.raises(InputError, match=r"order of sequences \(window-9\) is not known to this version"):
        loader.load_state_dict({**position, "order": {"name": "window-9", "window": 3}})


def test_a_position_keeps_its_window(token_folder):
    """A cache of another size would choose another one, and another order with it."""
    first = train_loader(token_folder)
    first.dataset.window = 1
    seen, state = begun(first, 9)
    whole = train_loader(token_folder)
    assert whole.dataset.window == 32 and state["order"] == {"name": "window-1", "window": 1}
    whole.load_state_dict({**state, "sample_in_epoch": 0})
    assert numbers(whole)[:9] == seen != numbers(train_loader(token_folder))[:9]


def test_label_after_an_eos_is_ignored_when_documents_are_masked(token_folder):
    batch = next(iter(train_loader(token_folder)))
    tokens, labels = batch["tokens"], batch["labels"]
    assert tokens.dtype == labels.dtype == torch.int64
    after_eos = torch.zeros_like(tokens, dtype=torch.bool)
    after_eos[:, 1:] = tokens[:, :-1] == EOS
    assert after_eos.any()
    assert torch.equal(labels, tokens.masked_fill(after_eos, -100))


def test_labels_are_the_tokens_without_document_mask(token_folder):
    batch = next(iter(train_loader(token_folder, document_mask=False)))
    assert torch.equal(batch["labels"], batch["tokens"])


def eval_batches(folder, *, rank=0, world_size=1, batch=4, max_batches=None):
    loader = build_eval_loader(
        StreamSpec(str(folder), None, "val"),
        device_batch_size=batch,
        rank=rank,
        world_size=world_size,
        max_batches=max_batches,
        **COMMON,
    )
    return list(loader)


def real_rows(batch):
    rows = zip(batch["tokens"], batch["labels"], strict=True)
    return [row[0].item() for row, labels in rows if (labels != -100).any()]


def test_evaluation_is_sequential_and_repeats(token_folder):
    for _ in range(2):
        rows = [real_rows(batch) for batch in eval_batches(token_folder)]
        assert flat(rows) == list(range(1, 22))


def test_evaluation_over_ranks_counts_each_sample_once_with_equal_batches(token_folder):
    ranks = [eval_batches(token_folder, rank=rank, world_size=3, batch=2) for rank in range(3)]
    assert [len(batches) for batches in ranks] == [4, 4, 4]
    assert all(len(batch["tokens"]) == 2 for batches in ranks for batch in batches)
    for i in range(4):
        group = flat(real_rows(batches[i]) for batches in ranks)
        assert group == list(range(6 * i + 1, min(6 * i + 6, 21) + 1))


def test_evaluation_stops_after_max_batches(token_folder):
    assert len(eval_batches(token_folder, max_batches=2)) == 2


def test_missing_shard_is_named_before_training(token_folder):
    (token_folder / "train" / "shard.00001.mds").unlink()
    with pytest.raises(InputError, match=r"shard\.00001\.mds: missing"):
        train_loader(token_folder)


def test_truncated_shard_is_named_before_training(token_folder):
    shard = token_folder / "train" / "shard.00001.mds"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"shard\.00001\.mds: \d+ bytes, index\.json says"):
        train_loader(token_folder)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", ["removed", "truncated"])
def test_row08_shard_lost_while_training_raises_with_its_name(token_folder, workers, damage):
    loader = train_loader(token_folder, workers=workers)
    shard = token_folder / "train" / "shard.00001.mds"
    if damage == "removed":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(RuntimeError, match=r"shard\.00001\.mds"):
        numbers(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_shard_missing_at_the_remote_raises_with_its_name(token_folder, tmp_path, workers):
    (token_folder / "train" / "shard.00001.mds").unlink()
    loader = train_loader(tmp_path / "cache", remote=str(token_folder), workers=workers)
    with pytest.raises(RuntimeError, match=r"shard\.00001\.mds"):
        numbers(loader)


def test_both_background_threads_failing_before_the_first_sample_hang_nobody(token_folder, tmp_path, monkeypatch):
    """Stock waits for the ends of two threads, which only threads that did not fail had told."""
    from moe.data.read.dataset import TokenDataset

    def lost(self, shard_id, blocking=True):
        self._fail(f"shard {shard_id} is lost")

    stock = TokenDataset._each_sample_id

    def late(self, it):
        self._event.wait()  # a thread has failed
        yield from stock(self, it)

    loader = train_loader(tmp_path / "cache", remote=str(token_folder), workers=0)
    monkeypatch.setattr(TokenDataset, "prepare_shard", lost)
    monkeypatch.setattr(TokenDataset, "_each_sample_id", late)
    ended: list[BaseException] = []

    def read() -> None:
        try:
            numbers(loader)
        except BaseException as error:
            ended.append(error)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(20)
    assert [str(error) for error in ended] and "is lost" in str(ended[0])


def test_remote_shards_are_fetched_and_give_the_same_batches(token_folder, tmp_path):
    local = numbers(train_loader(token_folder))
    assert numbers(train_loader(tmp_path / "cache", remote=str(token_folder))) == local


@pytest.mark.parametrize(("workers", "damaged"), [(0, "1"), (2, "1"), (2, "?")])
def test_changed_bytes_at_the_remote_raise(token_folder, tmp_path, workers, damaged):
    """Of one shard, or of all that workers fetch at the same time."""
    for shard in (token_folder / "train").glob(f"shard.0000{damaged}.mds"):
        content = bytearray(shard.read_bytes())
        content[-5] ^= 1
        shard.write_bytes(content)
    loader = train_loader(tmp_path / "cache", remote=str(token_folder), workers=workers)
    with pytest.raises(RuntimeError, match=r"shard\.0000.\.mds.*(Checksum|evicted)"):
        numbers(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_token_beyond_the_vocabulary_names_the_shard(token_folder, workers):
    with pytest.raises(RuntimeError, match=r"shard\.0000\d\.mds: token id \d+ .*vocabulary has 100"):
        numbers(train_loader(token_folder, vocab_size=100, workers=workers))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_cut_short_while_it_is_read_is_named_and_kills_no_process(token_folder, monkeypatch, workers):
    """Reading a map behind the end of its file is SIGBUS."""
    monkeypatch.setattr("moe.data.read.dataset.LOOK_AGAIN", -1.0)
    loader = train_loader(token_folder, batch=1, workers=workers)
    batches = iter(loader)
    for _ in range(40):  # all shards are open now
        next(batches)
    for shard in (token_folder / "train").glob("*.mds"):
        os.truncate(shard, 100)
    with pytest.raises((DataError, RuntimeError), match=r"shard\.\d+\.mds: 100 bytes, index\.json says \d+"):
        list(batches)


def test_a_worker_that_cannot_send_a_batch_ends_and_is_noticed(token_folder, monkeypatch, capfd):
    """H3: as with too many files open. Python's queue drops such a batch, and the run waited for it for ever."""
    monkeypatch.setattr(Collate, "__call__", lambda self, rows: {"tokens": lambda: rows})  # cannot be pickled
    loader = train_loader(token_folder, workers=1)
    loader.timeout = 60
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        numbers(loader)
    assert "error: a loader worker cannot send a batch: " in capfd.readouterr().err


class Joined:
    """Garbage of the trainer whose end takes a thread that no fork has."""

    def __init__(self):
        self.me, self.owner = self, os.getpid()

    def __del__(self):
        if os.getpid() != self.owner:
            time.sleep(60)


def test_a_worker_does_not_collect_the_garbage_of_its_trainer(token_folder, monkeypatch):
    """H6: a TCPStore's end joins a thread; a forked process that collected one waited for ever."""
    loader = train_loader(token_folder, workers=1)
    loader.timeout = 30
    monkeypatch.setattr(Collate, "__call__", lambda self, rows: {"tokens": torch.tensor([[gc.collect()]])})
    gc.disable()
    try:
        Joined()
        assert len(numbers(loader)) > 0
    finally:
        gc.enable()


def test_other_sequence_length_is_refused_with_both_values(token_folder):
    with pytest.raises(InputError, match=r"--seq-len 16, max_seq_len is 32"):
        train_loader(token_folder, seq_len=32)


def test_fewer_samples_than_a_global_batch_are_refused(token_folder):
    with pytest.raises(InputError, match="230 sequences, fewer than one global batch of 256"):
        train_loader(token_folder, batch=256)


def test_empty_split_is_refused(tmp_path):
    write_split(tmp_path / "val", np.empty((0, SEQ_LEN), np.uint16))
    with pytest.raises(InputError, match="holds no sequences"):
        eval_batches(tmp_path)


def test_wide_ids_survive(tmp_path):
    rows = numbered_rows(20).astype(np.uint32)
    rows[:, 1] = 200_000
    write_split(tmp_path / "train", rows)
    batch = next(iter(train_loader(tmp_path, batch=4, vocab_size=200_001)))
    assert (batch["tokens"][:, 1] == 200_000).all()


def test_two_runs_that_take_the_same_shared_memory_at_once_both_start(token_folder: Path, monkeypatch) -> None:
    import moe.data.read.loader as loader

    tries = []

    class Contended(loader.TokenDataset):
        def __init__(self, **settings):
            tries.append(None)
            super().__init__(**settings)
            if len(tries) < 3:  # late: by then Streaming has changed the streams it was given
                raise FileExistsError(17, "File exists", "/000425_locals")

    monkeypatch.setattr(loader, "TokenDataset", Contended)
    made = loader.build_eval_loader(
        StreamSpec(str(token_folder), None, "val"), device_batch_size=4, rank=0, world_size=1, max_batches=1, **COMMON
    )
    assert len(tries) >= 3 and len(next(iter(made))["tokens"]) == 4, "more where another test took a number meanwhile"


def test_a_cache_limit_never_deletes_data_that_has_no_remote_copy(token_folder: Path) -> None:
    """Stock evicts the only copy."""
    before = sorted(path.name for path in token_folder.rglob("*.mds"))
    with pytest.raises(InputError, match="no other copy"):
        train_loader(token_folder, cache_limit="1gb")
    assert sorted(path.name for path in token_folder.rglob("*.mds")) == before


def test_a_cache_limit_below_four_shards_is_refused_with_what_it_needs(token_folder: Path, tmp_path: Path) -> None:
    """C25: Streaming's message gave no number that helps."""
    largest = max(path.stat().st_size for path in (token_folder / "train").glob("*.mds"))
    limit = 4 * largest - 1
    with pytest.raises(
        InputError, match=rf"cache_limit \({limit}\): .* four times the largest shard, 268 MB for shards"
    ):
        train_loader(tmp_path / "small", remote=token_folder, cache_limit=limit)
    assert numbers(train_loader(tmp_path / "enough", remote=token_folder, cache_limit=4 * largest)), (
        "and that is enough"
    )
    assert "four\ntimes the largest shard" in (Path(__file__).parents[4] / "docs" / "data.md").read_text()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_position_does_not_hang_on_a_name_in_shared_memory(token_folder: Path, workers: int) -> None:
    """Stock takes what a killed run left there for its own position, and begins the epoch anew where it was cleared."""
    first = train_loader(token_folder)
    whole, position = numbers(first), first.dataset.state_dict(16, True)
    resumed = train_loader(token_folder, workers=workers)
    segment = Path(f"/dev/shm/{resumed.dataset._shm_prefix_int:06}_resume")
    resumed.load_state_dict(position)
    segment.unlink(missing_ok=True)
    assert numbers(resumed) == whole[2:]  # batches of 8
    fresh = train_loader(token_folder, workers=workers)
    segment = Path(f"/dev/shm/{fresh.dataset._shm_prefix_int:06}_resume")
    try:
        segment.write_text(json.dumps(position))
        assert numbers(fresh) == whole
    finally:
        segment.unlink(missing_ok=True)


def test_evaluating_a_large_split_in_full_takes_no_memory_for_its_rows():
    samples = 1_000_000_007
    settings = {"device_batch_size": 4, "rank": 1, "world_size": 3, "max_batches": None}
    collate = Collate(seq_len=2, eos_id=EOS, document_mask=False)
    tracemalloc.start()
    loader = batches.eval_batches(lambda number: np.array([number % 1000, 7]), samples, collate, **settings)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    rows = loader.dataset
    assert peak < 100_000 and len(loader) == 83_333_334 and len(rows) == 4 * len(loader)
    assert [int(rows[i][0]) for i in range(8)] == [4, 5, 6, 7, 16, 17, 18, 19]
    assert [None if row is None else int(row[0]) for row in map(rows.__getitem__, range(len(rows) - 4, len(rows)))] == [
        0, 1, 2, 3
    ]  # fmt: skip
