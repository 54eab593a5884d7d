"""Text in training is known by its bytes: what may happen to its files while a run goes on, and what may not."""

import gzip
import json
import os
import shutil
from pathlib import Path

import pytest

from moe.common.errors import InputError
from moe.data.read.lanes import documents
from moe.data.read.text_known import NAME, read_known, write_known
from moe.data.text import content
from moe.train.checkpointing.checkpoints import Checkpoint
from moe.train.checkpointing.compatibility import check_continues
from tests.unit.data.conftest import make_texts


def continues(tmp_path, saved: str, plan) -> None:
    checkpoint = Checkpoint(tmp_path, {"config": {}, "data": saved})
    check_continues(checkpoint, {}, plan.fingerprint, print, former=plan.former)


def test_a_run_goes_on_with_text_that_was_touched_or_copied(plan, text_folder, tmp_path):
    """B2: times and paths are no part of it; what an earlier version called the same text is taken too."""
    first = plan()
    shutil.copytree(text_folder, tmp_path / "copy")
    continues(tmp_path, first.former[0], plan())
    for path in text_folder.iterdir():
        os.utime(path, ns=(7, 7))
    continues(tmp_path, first.fingerprint, plan())
    continues(tmp_path, first.fingerprint, plan(dataset=tmp_path / "copy"))
    with pytest.raises(InputError, match="was data"):
        continues(tmp_path, first.former[0], plan())


def test_the_file_that_changed_is_named(plan, text_folder, tmp_path):
    """B2: one letter of one file, its size and time as they were."""
    first, path = plan(), text_folder / "b.jsonl"
    times = path.stat()
    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(InputError, match=r"was b\.jsonl=\w+\n    is  b\.jsonl=") as error:
        continues(tmp_path, first.fingerprint, plan())
    assert "a.parquet" not in str(error.value)


def test_a_run_folder_inside_of_the_text_is_no_text(plan, text_folder):
    """B4: what the run writes there changes nothing; the folder of the text itself is refused."""
    first = plan()
    (text_folder / "runs" / "one").mkdir(parents=True)
    (text_folder / "runs" / "one" / "metrics.jsonl").write_text('{"text": "a row of numbers"}\n')
    assert plan(outputs=(text_folder / "runs" / "one",)).fingerprint == first.fingerprint
    with pytest.raises(InputError, match="the same folder"):
        plan(outputs=(text_folder,))


def test_a_file_that_cannot_be_read_can_be_skipped(plan, text_folder, capsys):
    """C22: one that breaks at its front and one that breaks in its middle; both are told."""
    path = text_folder / "a.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    path = text_folder / "c.jsonl.gz"
    lines = [json.dumps({"text": text}) for text in make_texts(1500)]  # more than is looked at before the start
    path.write_bytes(gzip.compress("\n".join(lines).encode())[:-30])
    with pytest.raises(InputError, match=r"train_data\.text\.skip_bad_files=true"):
        plan()
    found = plan(skip_bad_files=True)
    assert "a file is skipped: a.parquet" in capsys.readouterr().out
    assert sum(len(texts) for piece in found.job.pieces for texts in documents(found.job, piece, split="train")) > 40
    assert "the rest of a file is skipped: c.jsonl.gz" in capsys.readouterr().err
    path.write_bytes(b"")
    assert plan(skip_bad_files=True).fingerprint != found.fingerprint


def test_text_that_nobody_touched_is_not_read_again(plan, text_folder, tmp_path, monkeypatch):
    """B2: a start that goes on reads the samples of changed files alone; an edit with its time set back is one."""
    monkeypatch.setattr(content, "SETTLED_NS", 0)
    first = plan()
    write_known(tmp_path, first.files)
    names, real = [], content.sample_of
    monkeypatch.setattr(content, "sample_of", lambda path, kind: (names.append(Path(path).name), real(path, kind))[1])
    assert plan(known=read_known(tmp_path)).fingerprint == first.fingerprint and names == []
    path = text_folder / "b.jsonl"
    times, raw = path.stat(), path.read_bytes()
    path.write_bytes(raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert plan(known=read_known(tmp_path)).fingerprint != first.fingerprint and names == ["b.jsonl"]
    plan(known=read_known(tmp_path), verify="full")
    assert len(names) == 1 + len(first.files)
    for damaged in (b"{", b"[[1]]", b'[["txt", "1", 5]]', b"\xff"):
        (tmp_path / NAME).write_bytes(damaged)
        assert read_known(tmp_path) == {}


def test_all_bytes_are_compared_where_that_is_asked_for(plan, text_folder, tmp_path, capsys):
    """B2: an edit between the samples of a large file, its size kept, is seen with `verify: full`."""
    path = text_folder / "b.jsonl"
    path.write_text((json.dumps({"text": "word " * 40}) + "\n") * 7000)
    samples, full = plan(), plan(verify="full")
    assert "train_data.text.verify=full: hashing 3 files" in capsys.readouterr().out
    version, raw = content.sample_of(str(path), "jsonl"), bytearray(path.read_bytes())
    for start in range(70_000, len(raw) - 1000, 1000):
        place = raw.index(b"word", start)
        raw[place : place + 4] = b"WORD"
        path.write_bytes(raw)
        if content.sample_of(str(path), "jsonl") == version:
            break
        raw[place : place + 4] = b"word"
    else:
        pytest.fail("the samples are all of the file")
    assert plan().fingerprint == samples.fingerprint, "the samples are those of before"
    continues(tmp_path, samples.fingerprint, plan(verify="full"))  # nothing to compare: it began without
    continues(tmp_path, full.fingerprint, plan())
    with pytest.raises(InputError, match=r"was b\.jsonl whole=\w+\n    is  b\.jsonl whole=") as error:
        continues(tmp_path, full.fingerprint, plan(verify="full"))
    assert "a.parquet" not in str(error.value)
    shutil.copytree(text_folder, tmp_path / "copy")
    continues(tmp_path, plan(verify="full").fingerprint, plan(dataset=tmp_path / "copy", verify="full"))
