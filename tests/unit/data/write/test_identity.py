"""What a conversion and a run know their text and shards by: bytes, and nothing else."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import moe.data.write.recorded as recorded
from moe.common.errors import InputError
from moe.data.text.content import sample_of
from moe.data.text.files import Unit
from moe.data.write.convert import convert
from moe.data.write.progress import human
from moe.train.inputs import shards_fingerprint
from tests.unit.data.conftest import folder_bytes, make_texts, write_parquet


def touch(folder: Path) -> None:
    for path in folder.rglob("*"):
        os.utime(path, ns=(1, 1))


def begin(tmp_path: Path, make_request, **changes) -> None:
    """A conversion that stops before the merge: b.parquet is broken, a.parquet is done."""
    write_parquet(tmp_path / "text" / "a.parquet", make_texts(60))
    (tmp_path / "text" / "b.parquet").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"b\.parquet"):
        convert(make_request(**changes))


def test_begun_work_goes_on_after_touch_copy_and_another_way_to_write_the_path(tmp_path, make_request, capsys):
    """B1: no time, path or way of typing it is part of what a dataset is."""
    begin(tmp_path, make_request)
    touch(tmp_path / "text")
    shutil.copytree(tmp_path / "text", tmp_path / "elsewhere" / "copy")
    write_parquet(tmp_path / "elsewhere" / "copy" / "b.parquet", make_texts(40, seed=2))
    convert(make_request(dataset=(f"{tmp_path}/elsewhere/../elsewhere/copy/",)))
    assert "resuming: 1 of 2 units are done" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "text")
    shutil.copytree(tmp_path / "elsewhere" / "copy", tmp_path / "text")
    convert(make_request())
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("restore", [False, True])
def test_an_edit_of_the_same_size_is_seen_whatever_the_time_says(tmp_path, make_request, restore, monkeypatch):
    """B1: in the middle of a file too large to be sampled whole, with its time set back."""
    path = tmp_path / "text" / "a.jsonl"
    path.parent.mkdir()
    line = json.dumps({"text": "word " * 40}) + "\n"
    path.write_text(line * 9000)
    convert(make_request(max_documents=50))
    times = path.stat()
    version = sample_of(str(path), "jsonl")
    raw = bytearray(path.read_bytes())
    for place in range(70_000, len(raw)):
        if raw[place : place + 4] == b"word":
            raw[place : place + 4] = b"WORD"
            path.write_bytes(raw)
            if sample_of(str(path), "jsonl") == version:
                break
            raw[place : place + 4] = b"word"
    if restore:
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (path.stat().st_size, sample_of(str(path), "jsonl")) == (times.st_size, version)
    with pytest.raises(InputError, match=r"a\.jsonl: other bytes, of the same size"):
        convert(make_request(max_documents=50))


def test_beyond_a_bound_touched_files_are_taken_for_the_same_in_a_line(tmp_path, make_request, monkeypatch, capsys):
    """B1: hashing again has a bound, is told, and can be asked for."""
    write_parquet(tmp_path / "text" / "a.parquet", make_texts(60))
    convert(make_request())
    touch(tmp_path / "text")
    monkeypatch.setattr(recorded, "MOST_REREAD", 10)
    hashed = []
    real = recorded.hash_of
    monkeypatch.setattr(recorded, "hash_of", lambda *a: (hashed.append(a), real(*a))[1])
    convert(make_request())
    assert "taken for the same by size and samples" in capsys.readouterr().out and not hashed
    convert(make_request(verify="full"))
    assert "taken for" not in capsys.readouterr().out and hashed


def test_work_of_an_earlier_version_is_refused_in_plain_words(tmp_path, make_request):
    """B1: what knew files by their times is neither gone on with nor misread."""
    begin(tmp_path, make_request)
    plan = tmp_path / "out.partial" / "plan.json"
    plan.write_text(json.dumps({"request": {"dataset": "text", "seed": 17}, "files": ["a.parquet", "b.parquet"]}))
    with pytest.raises(InputError, match="started by an earlier version"):
        convert(make_request())
    plan.write_text("{")
    with pytest.raises(InputError, match=r"plan\.json is damaged"):
        convert(make_request())


def test_one_broken_file_of_two_with_one_name_costs_only_itself(tmp_path, make_request, capsys):
    """A2: --skip-bad-files drops the truncated one alone, and a change of the good one is seen."""
    for dump in ("d1", "d2"):
        write_parquet(tmp_path / dump / "000.parquet", make_texts(80, seed=len(dump)))
    good = tmp_path / "d1" / "000.parquet"
    bad = tmp_path / "d2" / "000.parquet"
    bad.write_bytes(bad.read_bytes()[:-200])
    request = make_request(dataset=(str(tmp_path / "d1"), str(tmp_path / "d2")), skip_bad_files=True)
    meta = convert(request)
    assert meta is not None and sum(meta.documents.values()) == 80 and list(meta.left_out) == ["d2/000.parquet"]
    write_parquet(good, make_texts(81))
    with pytest.raises(InputError, match=r"d1/000\.parquet"):
        convert(request)


def test_asserts_do_no_work(tmp_path, make_request):
    """A4: python -O gives the same bytes."""
    write_parquet(tmp_path / "text" / "a.parquet", make_texts(60))
    request = make_request()
    convert(request)
    command = [sys.executable, "-O", str(Path(__file__).parents[4] / "convert/fineweb_to_mds.py")]
    command += ["--dataset", request.dataset[0], "--tokenizer", request.tokenizer, "--seq-len", "32", "--workers", "1"]
    command += ["--val-fraction", "0.05", "--out", str(tmp_path / "again")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert folder_bytes(tmp_path / "again") == folder_bytes(tmp_path / "out")


def test_nothing_came_out_deletes_nothing(tmp_path, make_request):
    """A4, C23: units that gave too little are kept; bad rows are named as the cause."""
    path = tmp_path / "text" / "a.jsonl"
    path.parent.mkdir()
    path.write_bytes(b'{"text": "short"}\n' + b'{"text": "\xff"}\n' * 3)
    with pytest.raises(InputError, match="3 invalid_utf8"):
        convert(make_request(seq_len=64))
    assert list((tmp_path / "out.partial").glob("units/*/done.json"))


def test_an_output_inside_of_the_dataset_is_never_read(tmp_path, make_request, capsys):
    """B4: the second run finds the same files, and is complete."""
    write_parquet(tmp_path / "text" / "a.parquet", make_texts(60))
    convert(make_request(out=tmp_path / "text" / "mds"))
    convert(make_request(out=tmp_path / "text" / "mds"))
    told = capsys.readouterr().out
    assert "nothing to do" in told and "the output: mds/" in told


def test_a_dry_run_tells_and_writes_nothing(tmp_path, make_request, capsys):
    """A8: what is in, what is out and why, and a forecast; no file is made."""
    write_parquet(tmp_path / "text" / "a.parquet", make_texts(60))
    (tmp_path / "text" / "b.docx").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    assert convert(make_request(dry_run=True)) is None
    told = capsys.readouterr().out
    files = ("in: a.parquet (parquet, ", "out: b.docx: of a format", "skipped: 1 of a format that is not read")
    for line in (*files, "estimate, ", "disk ", "time "):
        assert line in told
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_ends_as_the_run_would(tmp_path, make_request, capsys):
    """A8: what is begun, complete or refused is told, and nothing is written then either."""
    begin(tmp_path, make_request)
    before = folder_bytes(tmp_path)
    with pytest.raises(InputError, match=r"(?s)b\.parquet.*--skip-bad-files"):
        convert(make_request(dry_run=True))
    assert "in: b.parquet" not in capsys.readouterr().out and folder_bytes(tmp_path) == before
    convert(make_request(dry_run=True, skip_bad_files=True))
    assert "begun: 1 of 1 units are done" in capsys.readouterr().out and folder_bytes(tmp_path) == before
    convert(make_request(skip_bad_files=True))
    before = folder_bytes(tmp_path)
    capsys.readouterr()
    convert(make_request(dry_run=True, skip_bad_files=True))
    assert "is complete; there would be nothing to do" in capsys.readouterr().out and folder_bytes(tmp_path) == before
    with pytest.raises(InputError, match="holds another conversion"):
        convert(make_request(dry_run=True, skip_bad_files=True, seed=99))


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt"])
def test_the_forecast_of_a_small_dataset_is_what_comes_out(tmp_path, make_request, capsys, name):
    """A8: Arrow reads csv ahead, so that a whole file seemed to be one byte of it."""
    texts = [text for text in make_texts(80) if '"' not in text and "\n" not in text]
    rows = {
        "a.csv": ["text", *(f'"{text}"' for text in texts)],
        "a.jsonl": [json.dumps({"text": text}) for text in texts],
        "a.txt": texts,
    }
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / name).write_text("\n".join(rows[name]) + "\n")
    convert(make_request(dry_run=True))
    told = capsys.readouterr().out
    meta = convert(make_request())
    assert meta is not None
    total, documents = sum(meta.tokens.values()), sum(meta.documents.values())
    assert f"estimate, from the first documents: {human(total)} tokens in {human(documents)} documents" in told


def test_names_that_are_not_utf8_are_converted(tmp_path, make_request):
    """C5: names of files and folders that are no UTF-8 do not stop the end of a conversion."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/te\xffxt"))
    write_parquet(tmp_path / "a.parquet", make_texts(60))
    folder.mkdir()
    shutil.move(tmp_path / "a.parquet", Path(os.fsdecode(os.fsencode(folder) + b"/\xfe.parquet")))
    meta = convert(make_request(dataset=(str(folder),)))
    assert meta is not None and "te\\xffxt" in meta.dataset


def test_messages_do_not_say_config_none(tmp_path, make_request):
    """D13: what was not given is not named."""
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.docx").write_text("x")
    with pytest.raises(InputError, match="for split train") as error:
        convert(make_request())
    assert "None" not in str(error.value)


def test_the_same_shards_have_one_name_whoever_made_them(tmp_path, make_request):
    """B3: another path, file name or library version changes meta.json and not the tokens."""
    write_parquet(tmp_path / "text" / "a.parquet", make_texts(60))
    convert(make_request())
    shutil.copytree(tmp_path / "text", tmp_path / "copy")
    convert(make_request(dataset=(str(tmp_path / "copy"),), out=tmp_path / "two"))
    meta = json.loads((tmp_path / "two" / "meta.json").read_text())
    meta["versions"]["pyarrow"] = "99.0"
    (tmp_path / "two" / "meta.json").write_text(json.dumps(meta))
    assert shards_fingerprint(tmp_path / "out") == shards_fingerprint(tmp_path / "two")
    convert(make_request(seed=5, out=tmp_path / "three"))
    assert shards_fingerprint(tmp_path / "out") != shards_fingerprint(tmp_path / "three")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 3_000_000), st.integers(0, 2**32), st.sampled_from(["jsonl", "parquet", "txt"]))
def test_a_sample_follows_the_bytes_and_nothing_else(tmp_path, size, seed, kind):
    """B1: a copy, a touch and another name have the same version; another size or end another one."""
    content = bytes((seed + i * i) % 251 for i in range(997)) * (size // 997 + 1)
    one, two = tmp_path / "one", tmp_path / f"two-{seed}"
    one.write_bytes(content[:size])
    version = sample_of(str(one), kind)
    shutil.copyfile(one, two)
    os.utime(two, ns=(5, 5))
    assert sample_of(str(two), kind) == version
    two.write_bytes(content[: size + 1])
    assert sample_of(str(two), kind) != version
    if size:
        two.write_bytes(content[: size - 1] + bytes([content[size - 1] ^ 1]))
        assert sample_of(str(two), kind) != version


def test_a_record_is_of_the_bytes_of_its_unit(tmp_path):
    """B1: a unit's hash covers its own part of a file, and a file that cannot be read has none."""
    from moe.data.text.sources import resolve

    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' * 20)
    file = resolve(dataset=(str(tmp_path),), config=None, split="train", revision=None).files[0]
    first, second = recorded.record_of(Unit(0, file, 0, 140, 140)), recorded.record_of(Unit(0, file, 140, 280, 140))
    assert first and second and first["xxh128"] == second["xxh128"] and first["begin"] != second["begin"]
    (tmp_path / "a.jsonl").unlink()
    assert recorded.record_of(Unit(0, file, 0, 140, 140)) is None
