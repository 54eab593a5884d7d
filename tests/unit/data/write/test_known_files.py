"""What a stat record saves, and that it decides nothing."""

import json
import os
import shutil
from pathlib import Path

import pytest

from moe.common.errors import InputError
from moe.data.text import content
from moe.data.text.known import KnownTable
from moe.data.write.convert import convert
from tests.unit.data.conftest import make_texts, write_parquet


@pytest.fixture
def sampled(monkeypatch, tmp_path):
    """Names of the files that were read to be known again; two files are there."""
    monkeypatch.setattr(content, "SETTLED_NS", 0)
    names: list[str] = []
    real = content.sample_of
    monkeypatch.setattr(content, "sample_of", lambda path, kind: (names.append(Path(path).name), real(path, kind))[1])
    for i, name in enumerate("ab"):
        write_parquet(tmp_path / "text" / f"{name}.parquet", make_texts(60, seed=i))
    return names


def taken(names: list[str]) -> list[str]:
    found = sorted(names)
    names.clear()
    return found


def test_files_that_nobody_touched_are_not_read_again(tmp_path, make_request, sampled, capsys):
    """B1: begun and complete; a touch costs the one file, a copy its own reading, and neither changes anything."""
    whole = (tmp_path / "text" / "b.parquet").read_bytes()
    (tmp_path / "text" / "b.parquet").write_bytes(whole[:-90])
    with pytest.raises(InputError, match=r"b\.parquet"):
        convert(make_request())
    assert taken(sampled) == ["a.parquet", "b.parquet"]
    (tmp_path / "text" / "b.parquet").write_bytes(whole)
    convert(make_request())
    assert taken(sampled) == ["b.parquet"] and "resuming: 1 of 2" in capsys.readouterr().out
    convert(make_request())
    assert taken(sampled) == []
    os.utime(tmp_path / "text" / "a.parquet")
    convert(make_request())
    assert taken(sampled) == ["a.parquet"]
    convert(make_request(verify="full"))
    assert taken(sampled) == ["a.parquet", "b.parquet"]
    shutil.copytree(tmp_path / "text", tmp_path / "copy")
    convert(make_request(dataset=(str(tmp_path / "copy"),)))
    assert taken(sampled) == ["a.parquet", "b.parquet"]
    assert "holds another" not in capsys.readouterr().out


def test_an_edit_with_every_time_set_back_is_seen(tmp_path, make_request, sampled):
    """B1: size, mtime and inode as they were; nobody can set back the ctime."""
    path = tmp_path / "text" / "a.parquet"
    convert(make_request())
    taken(sampled)
    then = path.stat()
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    with open(path, "r+b") as file:
        file.write(raw)
    os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))
    now = path.stat()
    assert (now.st_size, now.st_mtime_ns, now.st_ino) == (then.st_size, then.st_mtime_ns, then.st_ino)
    with pytest.raises(InputError, match=r"a\.parquet: its content changed"):
        convert(make_request())
    assert taken(sampled) == ["a.parquet"]


def test_another_file_in_its_place_is_read(tmp_path, make_request, sampled):
    """B1: of the same size and time, moved there."""
    path = tmp_path / "text" / "a.parquet"
    convert(make_request())
    taken(sampled)
    then, raw = path.stat(), bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / "other").write_bytes(raw)
    os.utime(tmp_path / "other", ns=(then.st_atime_ns, then.st_mtime_ns))
    os.replace(tmp_path / "other", path)
    with pytest.raises(InputError, match=r"a\.parquet: its content changed"):
        convert(make_request())


def test_a_file_that_was_just_written_has_no_record(tmp_path, make_request, sampled, monkeypatch):
    """B1: within the grain of a clock it may change again and keep its time."""
    monkeypatch.setattr(content, "SETTLED_NS", 3_000_000_000)
    convert(make_request())
    assert json.loads((tmp_path / "out" / "conversion.json").read_text())["stats"] == [None, None]
    taken(sampled)
    convert(make_request())
    assert taken(sampled) == ["a.parquet", "b.parquet"]


@pytest.mark.parametrize("stats", [None, 5, [5], ["x", {}], [[1], [None]]])
def test_a_record_that_is_none_costs_the_reading_alone(tmp_path, make_request, sampled, stats, capsys):
    """B1: damaged, of an earlier version, of other files."""
    convert(make_request())
    path = tmp_path / "out" / "conversion.json"
    report = json.loads(path.read_text())
    if stats is None:
        del report["stats"]
    else:
        report["stats"] = stats
    path.write_text(json.dumps(report))
    taken(sampled)
    if stats == 5:
        with pytest.raises(InputError, match=r"conversion\.json is damaged"):
            convert(make_request())
    else:
        convert(make_request())
        assert "nothing to do" in capsys.readouterr().out
    assert taken(sampled) == ["a.parquet", "b.parquet"]


def test_a_full_temporary_folder_is_told_and_not_taken_for_a_damaged_record(
    tmp_path, make_request, sampled, monkeypatch
):
    convert(make_request())
    real = KnownTable.__init__

    def full(self):
        real(self)
        self._rows.execute("PRAGMA query_only=1")  # as an error of the disk: sqlite3.OperationalError

    monkeypatch.setattr(KnownTable, "__init__", full)
    with pytest.raises(InputError, match=r"files that were read before cannot be written to .*TMPDIR"):
        convert(make_request())


@pytest.mark.parametrize("row", ['["a", 111111111111111111111111111111]', '["a", 1.5]', "[" * 100_000])
def test_a_damaged_row_of_a_record_is_no_traceback(tmp_path, make_request, sampled, row):
    convert(make_request())
    out = make_request().out
    record = (out / "conversion.json").read_text()
    first = record.index("[", record.index('"files"') + 9)
    (out / "conversion.json").write_text(record[:first] + row + record[record.index("\n", first) - 1 :])
    with pytest.raises(InputError, match=r"conversion\.json"):
        convert(make_request())
