"""plan.json and conversion.json: how they are written, and that those of earlier versions are read."""

import errno
import io
import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from moe.common.errors import InputError
from moe.data.folders import LocalFolder
from moe.data.text import content, tables_of_files
from moe.data.text.files import SourceFile, Unit, key_of, name_of
from moe.data.text.tables_of_files import FileTable, UnitTable
from moe.data.write import records
from moe.data.write.convert import convert
from moe.data.write.done_units import Done, DoneUnits
from moe.data.write.streamed_json import Packed, read_streamed, row, streamed
from tests.unit.data.conftest import make_texts, write_parquet


def test_what_is_streamed_is_one_json_object():
    rows = [['a\n"b"\\.jsonl', "1"], ["über ☃.txt", None], [0, {"begin": 1, "stat": [2**64 - 1, -5]}]]
    held = Packed()
    for value in rows * 5000:
        held.add(value)
    head = {"format": 2, "request": {"text": "ü"}}
    text = b"".join(streamed(head, {"files": map(row, rows), "none": [], "reads": held}))
    assert json.loads(text) == {**head, "files": rows, "none": [], "reads": rows * 5000}
    assert list(held) == list(held) and text.count(b"\n") > 15_000, "a line a row"
    assert held._file.seek(0, 2) < 100_000


def test_a_record_whose_writing_is_stopped_leaves_no_file(tmp_path):
    """One that was left beside it would be published, and block --overwrite ever after."""

    def stopped():
        yield b"{"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LocalFolder(tmp_path).write("conversion.json", stopped())
    assert list(tmp_path.iterdir()) == []


def test_a_unit_is_named_by_its_key():
    for index, begin, name in ((0, 0, "00000-0000000000000"), (1234567, 9 * 10**12, "1234567-9000000000000")):
        unit = Unit(index, SourceFile("a", "a", "txt", 1, "1"), begin, begin + 1, 1)
        assert unit.name == name == name_of(key_of(name)) and key_of(name) == unit.key


def test_files_are_sampled_some_at_a_time_in_their_order(tmp_path, monkeypatch):
    """Each file that waits for a thread is an object of a kilobyte."""
    handed = []
    real = ThreadPoolExecutor.map
    monkeypatch.setattr(
        ThreadPoolExecutor, "map", lambda self, call, some: (handed.append(len(some)), real(self, call, some))[1]
    )
    monkeypatch.setattr(content, "AT_ONCE", 3)
    for i in range(8):
        (tmp_path / f"{i}.txt").write_bytes(b"x" * i)
    found = content.versions_of([(str(tmp_path / f"{i}.txt"), "txt") for i in (5, 1, 7, 0, 2, 9, 6)], {})
    assert [size for size, *_ in found] == [5, 1, 7, 0, 2, 0, 6] and handed == [3, 3, 1]


@pytest.fixture
def begun(tmp_path, make_request):
    """A conversion that stopped before its merge: b.parquet is broken, then fixed; a.parquet is done."""
    write_parquet(tmp_path / "text" / "a.parquet", make_texts(60), rows_per_group=10)
    (tmp_path / "text" / "b.parquet").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"b\.parquet"):
        convert(make_request())
    write_parquet(tmp_path / "text" / "b.parquet", make_texts(40, seed=2))


def test_records_of_the_earlier_layout_are_read(tmp_path, make_request, begun, monkeypatch, capsys):
    """Indented, with sorted keys, and all that was read of a file in one row."""
    plan, report = tmp_path / "out.partial" / "plan.json", tmp_path / "out" / "conversion.json"
    plan.write_text(json.dumps(json.loads(plan.read_text()), indent=1, sort_keys=True))
    convert(make_request())
    assert "resuming: 1 of 2 units are done" in capsys.readouterr().out
    values = json.loads(report.read_text())
    by_file: dict = {}
    for place, *reads in values["reads"]:
        by_file.setdefault(place, []).extend(reads)
    values["reads"] = [[place, *reads, *reads] for place, reads in by_file.items()]
    report.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")
    for path in (tmp_path / "text").iterdir():
        os.utime(path, ns=(1, 1))
    convert(make_request(verify="full"))
    assert "nothing to do" in capsys.readouterr().out
    values["reads"][0][2]["xxh128"] = "0" * 32
    report.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")
    with pytest.raises(InputError, match=r"a\.parquet: other bytes, of the same size"):
        convert(make_request(verify="full"))


def test_a_plan_is_looked_at_once_at_a_start_however_often_it_is_asked(make_request, begun, monkeypatch):
    """Each time takes seconds with a million files; what was read of them is learned beside that."""
    parsed = []
    real = records._look
    monkeypatch.setattr(records, "_look", lambda folder, name: (parsed.append(name), real(folder, name))[1])
    convert(make_request())
    assert parsed.count("plan.json") == 1


def test_a_plan_of_fewer_files_is_named_by_the_files_that_are_new(tmp_path, make_request, begun):
    write_parquet(tmp_path / "text" / "c.parquet", make_texts(10, seed=3))
    with pytest.raises(InputError, match=r"started with other files\n  c\.parquet: was not there then"):
        convert(make_request())


def test_units_that_are_done_are_known_by_their_keys_in_order():
    done, plain = DoneUnits(), {}
    values = [Done(3, 70, False, None), Done(0, 1 << 40, True, None), Done(9, 9, False, "a"), Done(1, 2, True, "b")]
    for i, key in enumerate([7 << 44, 2 << 44, 2 << 44 | 5, 900_000 << 44, 0, 7 << 44, 2 << 44 | 1]):
        done[key] = plain[key] = values[i % 4]
    assert list(done) == sorted(plain) and {key: done[key] for key in done} == plain
    for missing in (1 << 44, 1 << 60, 2 << 44 | 9):
        assert missing not in done and done.get(missing) is None
        with pytest.raises(KeyError):
            _ = done[missing]


def test_a_table_of_files_gives_back_what_it_was_given():
    names = ["a/b.json", "x" * 300, "c\n", "caf\udce9.txt"]
    versions = [str((1 << 128) - 1), "007", "none: Permission denied", "\u0663"]
    stats = [(2**63, -(10**18), 15 * 10**18, 2**64 - 1, 0), None, (5, -1, 2**70, 0, 9), None]
    files = [
        SourceFile(name, f"/data/{name}", "json", 2**45, version, i == 1, stat, "etag" * (i == 2) or None)
        for i, (name, version, stat) in enumerate(zip(names, versions, stats, strict=True))
    ] * 500
    table = FileTable(iter(files))
    assert list(table) == files and [table[i] for i in range(-len(files), len(files))] == files * 2
    assert table[3:9:2] == files[3:9:2] and list(FileTable([])) == []
    with pytest.raises(IndexError):
        table[len(files)]
    units = UnitTable(table)
    made = [Unit(2, files[2], 0, 9, 7, False), Unit(3, files[3].of_kind("jsonl"), 2**43, 2**44, 2**50)]
    units.extend(made)
    assert list(units) == made and units[-1].file.kind == "jsonl" and units.weight == 7 + 2**50
    assert list(units.of(made[1:])) == made[1:]


def test_where_the_list_of_files_finds_no_room_a_line_says_so(monkeypatch):
    def full(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tables_of_files.tempfile, "TemporaryFile", full)
    with pytest.raises(InputError, match=r"list of files cannot be written to .*No space left.*TMPDIR"):
        FileTable([])


def test_streamed_records_are_read_row_by_row_and_others_too():
    head, rows = (
        {"request": {"a": "],"}, "format": 2},
        {"files": [["a]},", "1"], ["b", "2"]], "stats": [None, [1]], "reads": []},
    )
    ours = b"".join(streamed(head, {name: map(row, values) for name, values in rows.items()}))
    for text in (ours, json.dumps({**head, **rows}, indent=1).encode(), json.dumps({**head, **rows}).encode()):
        found = list(read_streamed(io.BytesIO(text), tuple(rows)))
        assert {key for part, value in found if not part for key in value} == {"request", "format", *rows}
        assert {name: [value for part, value in found if part == name] for name in rows} == rows
    for cut in range(len(ours) - 1):
        with pytest.raises(ValueError):
            list(read_streamed(io.BytesIO(ours[:cut]), tuple(rows)))
