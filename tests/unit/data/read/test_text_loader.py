"""Batches of text that is tokenised as it is read: their order, the position in it, and what is told of bad text."""

import dataclasses
import gzip
import itertools
import json
import os
import signal
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from moe.common.errors import DataError, InputError
from moe.data import build_text_eval_loader, build_text_loader
from moe.data.read import lanes
from moe.data.read.lanes import documents, validation_rows
from tests.unit.data.conftest import make_texts
from tests.unit.data.hub_server import Hub


def batches(job, count, *, workers=0, batch=8, state=None):
    """(tokens of `count` batches, the state behind each)."""
    loader, rows = build_text_loader(job, device_batch_size=batch, num_workers=workers, document_mask=True)
    samples = 0
    if state is not None:
        rows.load_state_dict(state)
        samples = state["sample_in_epoch"]
    found, states = [], []
    for made in itertools.islice(loader, count):
        samples += batch * rows.ranks
        found.append(made["tokens"])
        states.append(rows.state_dict(samples, True))
    return found, states


def test_order_is_the_same_for_any_number_of_workers_and_differs_by_seed(plan):
    whole, states = batches(plan().job, 30)
    for workers in (1, 2, 3):
        found, behind = batches(plan().job, 30, workers=workers)
        assert all(torch.equal(a, b) for a, b in zip(found, whole, strict=True)) and behind == states
    other, _ = batches(plan(seed=6).job, 30)
    assert not torch.equal(torch.cat(other), torch.cat(whole))


def test_every_encoder_gives_the_same_batches_in_a_worker_too(plan, monkeypatch):
    pytest.importorskip("fastokens")
    from moe.data.read import text_plan

    monkeypatch.setattr(lanes, "WINDOW_TOKENS", 1 << 19)  # a spawned worker has the module's own
    whole, _ = batches(plan().job, 3)
    plain = text_plan.choose_encoder
    for name in ("fastokens", "transformers"):
        monkeypatch.setattr(text_plan, "choose_encoder", lambda wanted, name=name, **more: plain(name, **more))
        job = plan().job
        assert job.encoder == name
        found, _ = batches(job, 3, workers=1)
        assert torch.equal(torch.cat(found), torch.cat(whole))


def test_a_spawned_worker_killed_as_it_starts_is_noticed(plan):
    """With a tokenizer that no pipe holds: the start itself must not wait for the worker."""
    job = dataclasses.replace(plan().job, encoder="fastokens", spec_json=" " * (1 << 20))

    def kill_the_worker():
        children = Path(f"/proc/{os.getpid()}/task/{threading.main_thread().native_id}/children")
        while True:
            for pid in children.read_text().split():
                if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return os.kill(int(pid), signal.SIGKILL)

    def too_late(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, too_late)
    threading.Thread(target=kill_the_worker, daemon=True).start()
    signal.alarm(60)
    try:
        with pytest.raises(RuntimeError, match=r"exited unexpectedly|is killed by signal"):
            batches(job, 1, workers=1)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(("batch", "lanes_"), [(8, 4), (3, 4), (2, 8)])
def test_state_restores_the_exact_position_in_and_between_epochs(plan, batch, lanes_):
    job = plan(lanes=lanes_).job
    whole, states = batches(job, 60, batch=batch)
    for cut, workers in ((0, 0), (6, 2), (29, 1), (51, 0)):
        state = json.loads(json.dumps(states[cut]))
        found, behind = batches(job, 8, batch=batch, workers=workers, state=state)
        assert all(torch.equal(a, b) for a, b in zip(found, whole[cut + 1 :], strict=False))
        assert behind == states[cut + 1 : cut + 9]


def test_the_state_before_the_newest_batch_is_known_too(plan):
    job = plan().job
    _, states = batches(job, 5)
    loader, rows = build_text_loader(job, device_batch_size=8, num_workers=0, document_mask=True)
    list(itertools.islice(loader, 5))
    assert rows.state_dict(32, True) == states[3] and rows.state_dict(40, True) == states[4]


def on_ranks(monkeypatch, job, ranks, count, *, batch, state=None, workers=0):
    """Batches of each rank, and the state behind each as all ranks then have it."""
    made = []
    for rank in range(ranks):
        for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", ranks), ("LOCAL_WORLD_SIZE", ranks)):
            monkeypatch.setenv(name, str(value))
        made.append(batches(job, count, batch=batch // ranks, workers=workers, state=state))
    states = [
        {**behind[0], "lanes": torch.tensor([one["lanes"] for one in behind]).sum(0).tolist()}
        for behind in zip(*(behind for _, behind in made), strict=True)
    ]
    return [found for found, _ in made], states


def same_rows(parts, whole):
    return sorted(torch.cat(parts).tolist()) == sorted(whole.tolist())


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_share_the_global_batches_of_one_and_may_change_at_a_resume(plan, monkeypatch, ranks):
    job = plan().job
    whole, states = batches(job, 24, batch=8)
    parts, behind = on_ranks(monkeypatch, job, ranks, 12, batch=8, workers=2)
    assert behind == states[:12]
    assert all(same_rows(batch, expected) for batch, expected in zip(zip(*parts, strict=True), whole, strict=False))
    resumed, behind = on_ranks(monkeypatch, job, ranks, 12, batch=8, state=states[11])
    assert behind == states[12:]
    assert all(same_rows(b, expected) for b, expected in zip(zip(*resumed, strict=True), whole[12:], strict=True))


def test_positions_of_other_ranks_come_with_share(plan, monkeypatch):
    job = plan().job
    _, states = on_ranks(monkeypatch, job, 2, 3, batch=8)
    both = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        loader, rows = build_text_loader(job, device_batch_size=4, num_workers=0, document_mask=True)
        list(itertools.islice(loader, 3))
        both.append((rows, rows._positions[24].clone()))
    for i, (rows, _) in enumerate(both):
        rows.share(lambda mine, other=both[1 - i][1]: mine + other)
        assert rows.state_dict(24, True) == states[2]


@pytest.mark.parametrize("kind", ["txt", "jsonl.gz", "parquet"])
def test_a_file_that_cannot_be_cut_serves_all_lanes_and_each_document_once(plan, tmp_path, kind):
    texts = make_texts(60)
    path = tmp_path / "one" / f"a.{kind}"
    path.parent.mkdir()
    if kind == "parquet":
        pq.write_table(pa.table({"text": texts}), path)
    elif kind == "txt":
        texts = ["the quick brown fox " * 900 + f"{i}\n\n" for i in range(12)]
        path.write_text("".join(texts))
    else:
        path.write_bytes(gzip.compress("".join(json.dumps({"text": t}) + "\n" for t in texts).encode()))
    job = plan(path.parent, val_fraction=0).job
    assert len(job.pieces) == 4
    read = [text for piece in job.pieces for part in documents(job, piece, split="train") for text in part.to_pylist()]
    assert sorted(read) == sorted(texts)
    assert len(batches(job, 4, workers=2)[0]) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_breaks_while_training_is_one_message_and_no_hang(plan, text_folder, workers):
    lines = [json.dumps({"text": text}) for text in make_texts(1500)]  # more than is looked at before the start
    (text_folder / "c.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode())[:-30])
    job = plan().job
    with pytest.raises(DataError, match=r"^train_data\.text: c\.jsonl\.gz: cannot be read to its end"):
        batches(job, 3000, workers=workers)


def test_text_without_a_document_to_train_on_is_told(plan, tmp_path):
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.jsonl").write_text('{"text": " "}\n{"text": null}\n' * 50)
    with pytest.raises(DataError, match="no document to train on"):
        batches(plan(tmp_path / "none").job, 1)


def test_what_cannot_be_read_is_told_before_training_in_keys_of_the_config(plan, tmp_path, text_folder):
    with pytest.raises(InputError, match=r"^train_data\.text: dataset .*nowhere: no such file"):
        plan(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no column 'body'; there are .*choose one with text_column"):
        plan(text_column="body")
    (text_folder / "d.parquet").write_bytes(b"")
    with pytest.raises(InputError, match=r"d\.parquet: the file is empty"):
        plan()
    with pytest.raises(InputError, match="hold less than one block of 32 tokens"):
        (text_folder / "d.parquet").unlink()
        build_text_eval_loader(
            plan(val_fraction=0), document_mask=True, device_batch_size=4, rank=0, world_size=1, max_batches=1
        )


def test_the_fingerprint_names_files_tokenizer_split_and_lanes(plan, text_folder):
    first = plan().fingerprint
    assert plan().fingerprint == first and plan(seed=6).fingerprint == first  # the seed is a key of its own
    changed = [plan(lanes=8), plan(val_fraction=0.2), plan(val_seed=18)]
    with open(text_folder / "b.jsonl", "a") as file:
        file.write('{"text": "one more"}\n')
    changed.append(plan())
    assert len({first, *(one.fingerprint for one in changed)}) == 5


def test_evaluation_over_ranks_holds_each_block_once(plan):
    made = plan()
    rows = validation_rows(made.job, made.units, None)
    found = []
    for rank in range(2):
        loader = build_text_eval_loader(
            made, document_mask=True, device_batch_size=3, rank=rank, world_size=2, max_batches=None
        )
        found += [row for batch in loader for row, label in zip(*batch.values(), strict=True) if (label >= 0).any()]
    assert sorted(row.tolist() for row in found) == sorted(rows.tolist())


def test_a_hub_dataset_gives_the_batches_of_its_files(plan, text_folder, monkeypatch):
    local, _ = batches(plan().job, 10)
    hub = Hub({"me/text": text_folder}, faults=lambda path, count: "503" if count == 2 else None)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setattr("moe.data.hub_client.FIRST_PAUSE_S", 0.01)
    try:
        found, _ = batches(plan("me/text").job, 10, workers=2)
    finally:
        hub.close()
    assert hub.failed["503"] and all(torch.equal(a, b) for a, b in zip(found, local, strict=True))
