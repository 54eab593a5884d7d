"""Text that is touched between two starts, or while a run reads it."""

import json
import os
import shutil
from pathlib import Path

import pytest

from moe.common.errors import DataError, InputError
from moe.data.read import touched
from moe.data.read.lanes import documents
from moe.data.read.text_known import read_known, write_known
from moe.data.text import content
from tests.unit.data.read.test_text_loader import batches


def texts_of(job) -> list[str]:
    return [
        text for piece in job.pieces for found in documents(job, piece, split="train") for text in found.to_pylist()
    ]


def edited(path: Path, at: int) -> None:
    """One letter, the size kept."""
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def test_a_start_says_of_what_it_takes_for_the_same_by_samples(plan, text_folder, tmp_path, monkeypatch, capsys):
    """B2: a large file that was touched or copied was taken for the same without a word."""
    monkeypatch.setattr(content, "SETTLED_NS", 0)
    (text_folder / "b.jsonl").write_text((json.dumps({"text": "word " * 40}) + "\n") * 7000)
    first = plan()
    write_known(tmp_path, first.files)
    assert "taken for" not in capsys.readouterr().out
    assert plan(known=read_known(tmp_path)).fingerprint == first.fingerprint
    assert "taken for" not in capsys.readouterr().out, "nobody touched them"
    for path in text_folder.iterdir():
        os.utime(path, ns=(1, 1))
    line = "1 files were touched or copied since the last start: taken for the same by size and samples"
    assert plan(known=read_known(tmp_path)).fingerprint == first.fingerprint
    assert capsys.readouterr().out.count(line) == 1, "the others are sampled with all of their bytes"
    plan(known=read_known(tmp_path), verify="full")
    assert "taken for" not in capsys.readouterr().out
    shutil.copytree(text_folder, tmp_path / "copy")
    plan(tmp_path / "copy", known=read_known(tmp_path))
    assert capsys.readouterr().out.count(line) == 1


@pytest.mark.parametrize("name", ["a.parquet", "b.jsonl", "c.jsonl.gz"])
def test_what_is_touched_or_replaced_by_the_same_while_a_run_reads_it_changes_nothing(plan, text_folder, name, capfd):
    """B2: as at a start; a stat record decides nothing."""
    found = plan()
    before, path = texts_of(found.job), text_folder / name
    os.utime(path, ns=(1, 1))
    shutil.copy(path, text_folder / "aside")
    os.replace(text_folder / "aside", path)
    assert texts_of(found.job) == before and "changed" not in capfd.readouterr().err


@pytest.mark.parametrize("change", ["a letter", "a line more", "cut"])
@pytest.mark.parametrize("skip", [False, True])
def test_what_changes_while_a_run_reads_it_ends_the_run(plan, text_folder, change, skip):
    """B2: other documents were trained on, epoch after epoch, and the positions of a checkpoint meant others."""
    found, path = plan(skip_bad_files=skip), text_folder / "c.jsonl.gz"
    texts_of(found.job)
    if change == "a letter":
        path = text_folder / "b.jsonl"
        edited(path, path.read_bytes().index(b'"text": "') + 9)
    elif change == "a line more":
        path = text_folder / "b.jsonl"
        path.write_bytes(path.read_bytes() + b'{"text": "more"}\n')
    else:
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(
        DataError, match=rf"train_data\.text: {path.name}: changed while the run reads it .* put it back"
    ):
        batches(found.job, 200)


def test_a_change_within_a_piece_is_seen_at_its_end(plan, text_folder):
    """B2: so is one between two looks."""
    job = plan().job
    path = text_folder / "b.jsonl"
    piece = next(piece for piece in job.pieces if piece.unit.file.name == path.name)
    reading = documents(job, piece, split="train")
    next(reading)
    edited(path, path.read_bytes().rindex(b'"text": "') + 9)
    with pytest.raises(InputError, match="changed while the run reads it"):
        list(reading)


def test_a_touched_file_is_looked_at_once_and_large_ones_are_told(plan, text_folder, monkeypatch, capfd):
    """B2: a line for each, not for each piece."""
    monkeypatch.setattr(content, "SETTLED_NS", 0)
    (text_folder / "b.jsonl").write_text((json.dumps({"text": "word " * 40}) + "\n") * 7000)
    job = plan().job
    looks, real = [], touched.sample_of
    monkeypatch.setattr(touched, "sample_of", lambda path, kind: (looks.append(path), real(path, kind))[1])
    texts_of(job)
    assert not looks
    os.utime(text_folder / "b.jsonl", ns=(1, 1))
    texts_of(job)
    texts_of(job)
    assert len(looks) == 1 and sum(piece.unit.file.name == "b.jsonl" for piece in job.pieces) > 1
    assert capfd.readouterr().err.count("b.jsonl was touched meanwhile: taken for the same by size and samples") == 1
