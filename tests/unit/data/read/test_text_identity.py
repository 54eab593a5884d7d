"""Text in training is known by its bytes: what may happen to its files while a run goes on, and what may not."""

import gzip
import json
import os
import shutil

import pytest

from moe.data.read.lanes import documents
from moe.errors import InputError
from moe.train.checkpoints import Checkpoint
from moe.train.continuing import check_continues
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
