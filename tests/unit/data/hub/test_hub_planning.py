"""How many of a hub's files are looked at before the work, and how."""

import time
from pathlib import Path

import pytest

from moe.common.errors import InputError
from moe.data.meta import read_meta
from moe.data.text.files import SourceFile
from moe.data.text.planning import Planning, plan_units
from moe.data.write.convert import convert
from tests.unit.data.conftest import folder_bytes, make_texts, write_parquet
from tests.unit.data.hub.some_set import source


def parquet_files(folder: Path, count: int, rows: int = 10) -> None:
    for number in range(count):
        write_parquet(folder / f"{number:03}.parquet", make_texts(rows, seed=number))


def test_many_files_are_planned_at_once_in_their_order(serve, folder, monkeypatch, capfd):
    """C12: 300 files one request after another took 44 s."""
    parquet_files(folder, 60)
    asked, most = [], []

    def answer(path, count):
        if path.endswith(".parquet"):
            asked.append(path)
            most.append(len(asked))
            time.sleep(0.1)
            asked.remove(path)

    serve(answer)
    monkeypatch.setattr("moe.data.text.planning.REPORT_EVERY_S", 0.1)
    files = source().files
    units, bad = plan_units(files, "text")
    assert max(most) > 8, "so many are asked for at once"
    assert not bad and [unit.file.name for unit in units] == [f"{number:03}.parquet" for number in range(60)]
    assert [unit.file_index for unit in units] == list(range(60))
    assert "looking at the dataset: " in capfd.readouterr().out


def test_of_a_hubs_files_a_limit_needs_few(serve, folder, make_request, tmp_path):
    """C12: also with --max-documents; the bytes are those of a plan of all files."""
    parquet_files(folder, 80)
    server = serve()
    convert(make_request(dataset=("some/set",), max_documents=25))
    asked = {path for path in server.requests if path.endswith(".parquet")}
    assert len(asked) < 50
    convert(make_request(dataset=(str(folder),), max_documents=25, out=tmp_path / "local"))
    proof = "git blob id"  # each is smaller than a block, so it comes whole
    assert list(read_meta(tmp_path / "out").proofs) == [proof]
    names = ("train/index.json", "train/shard.00000.mds")
    mine, local = folder_bytes(tmp_path / "out"), folder_bytes(tmp_path / "local")
    assert all(mine[name] == local[name] for name in names)


def test_a_limit_that_needs_more_than_was_looked_at_looks_further(serve, folder, make_request, tmp_path):
    """C12: where nearly all rows are skipped, their number says little."""
    for number in range(120):
        write_parquet(folder / f"{number:03}.parquet", ["", "", "", "", "", "", "", "", "", f"words of file {number}"])
    server = serve()
    meta = convert(make_request(dataset=("some/set",), max_documents=50, seq_len=8))
    assert sum(meta.documents.values()) == 50
    assert len({path for path in server.requests if path.endswith(".parquet")}) < 120


def test_a_plan_goes_on_where_it_stood(folder):
    """C12: further files of a plan get the same units as a plan of all."""
    parquet_files(folder, 100, rows=3)
    files = [SourceFile(path.name, str(path), "parquet", path.stat().st_size, "1") for path in sorted(folder.iterdir())]
    every, _ = plan_units(files, "text")
    planning = Planning([*files], "text", max_documents=3)
    assert planning.more() and planning.units == every, "of files on this machine all are looked at"
    assert not planning.more()


def test_work_begins_before_all_files_have_been_looked_at(serve, folder, make_request, tmp_path, monkeypatch):
    """27,000 footers of a server that limits requests take most of an hour."""
    parquet_files(folder, 40)
    monkeypatch.setattr("moe.data.text.planning.BEGIN", 4)
    monkeypatch.setattr("moe.data.text.planning.THREADS", 2)
    begun: list[bool] = []

    def wait_for_work(path: str, count: int) -> None:
        if path.endswith("039.parquet") and not begun:
            end = time.monotonic() + 10
            while not (made := any((tmp_path / "out.partial").glob("units/*/done.json"))) and time.monotonic() < end:
                time.sleep(0.01)
            begun.append(made)

    serve(wait_for_work)
    convert(make_request(dataset=("some/set",), workers=2))
    assert begun[:1] == [True]
    convert(make_request(dataset=(str(folder),), out=tmp_path / "local"))
    mine, local = folder_bytes(tmp_path / "out"), folder_bytes(tmp_path / "local")
    assert mine["train/shard.00000.mds"] == local["train/shard.00000.mds"]


def test_files_that_are_looked_at_during_the_work_and_cannot_be_read_are_named(
    serve, folder, make_request, tmp_path, monkeypatch
):
    parquet_files(folder, 12)
    (folder / "011.parquet").write_bytes(b"PAR1 no footer")
    monkeypatch.setattr("moe.data.text.planning.BEGIN", 4)
    serve()
    with pytest.raises(InputError, match=r"011\.parquet"):
        convert(make_request(dataset=("some/set",)))
    meta = convert(make_request(dataset=("some/set",), skip_bad_files=True))
    assert list(meta.left_out) == ["011.parquet"] and sum(meta.documents.values()) > 100


def test_a_plan_that_fails_during_the_work_ends_it_with_its_message(serve, folder, make_request, monkeypatch):
    parquet_files(folder, 40)
    monkeypatch.setattr("moe.data.text.planning.BEGIN", 4)
    monkeypatch.setattr("moe.data.text.planning.THREADS", 2)
    serve(lambda path, count: (folder / "030.parquet").unlink(True) if path.endswith("020.parquet") else None)
    with pytest.raises(InputError, match=r"030\.parquet: HTTP 404"):
        convert(make_request(dataset=("some/set",)))


def test_a_bug_in_planning_is_raised_and_keeps_no_thread_busy(monkeypatch):
    """C12: what a thread raises is raised where the plan is made."""
    from moe.data.text.planning import in_order

    def call(number: int) -> int:
        if number == 3:
            raise RuntimeError("three")
        return number

    found = in_order(call, list(range(500)), threads=4, ahead=8)
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(RuntimeError, match="three"):
        next(found)
