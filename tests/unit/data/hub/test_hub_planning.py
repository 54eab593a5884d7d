"""How many of a hub's files are looked at before the work, and how."""

import itertools
import json
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from moe.common.errors import InputError
from moe.data.meta import read_meta
from moe.data.text import planning
from moe.data.text.ahead import Ahead
from moe.data.text.files import SourceFile, Unit
from moe.data.text.planning import Planning, plan_units
from moe.data.write import run_units
from moe.data.write.convert import convert
from moe.data.write.items import share_of
from moe.data.write.plan import make_plan
from moe.data.write.state import open_workspace
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
    plan = Planning([*files], "text", max_documents=3)
    assert plan.more() and list(plan.units) == list(every), "of files on this machine all are looked at"
    assert not plan.more()


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


def test_a_machine_of_several_looks_at_its_own_files_alone(serve, folder, make_request, tmp_path, monkeypatch):
    """Each looking at all of them would use up a limit of requests that they share."""
    parquet_files(folder, 24)
    monkeypatch.setattr(planning, "BEGIN", 4)
    monkeypatch.setattr(planning, "THREADS", 1)
    monkeypatch.setattr("moe.data.write.items.LEAST_TURNS", 10)
    request = {"dataset": ("some/set",), "num_shards": 2}
    ids = []
    for index in (1, 0):
        server = serve()
        convert(make_request(shard_index=index, **request))
        asked = {int(path[-11:-8]) for path in server.requests if path.endswith(".parquet")}
        assert asked - set(range(8)) == set(range(index, 24, 2)) - set(range(8)), "the first of all, then its own"
        ids.append(json.loads((tmp_path / "out.partial" / "plan.json").read_text())["request"]["id_column"])
    assert ids == ["id"] * 2
    convert(make_request(dataset=("some/set",), merge_only=True))
    convert(make_request(dataset=(str(folder),), out=tmp_path / "local"))
    mine, local = folder_bytes(tmp_path / "out"), folder_bytes(tmp_path / "local")
    assert all(mine[name] == local[name] for name in mine if name.endswith(".mds"))


@pytest.mark.parametrize("skip", [False, True])
def test_a_file_that_cannot_be_read_is_left_out_of_no_sharded_conversion_in_silence(
    serve, folder, make_request, monkeypatch, skip
):
    """B15: one behind the first files was found while the work went on: each shard and the merge ended with 0."""
    parquet_files(folder, 24)
    broken = "021.parquet"
    (folder / broken).write_bytes(b"PAR1 no table PAR1")
    monkeypatch.setattr(planning, "BEGIN", 4)
    monkeypatch.setattr(planning, "THREADS", 1)
    monkeypatch.setattr("moe.data.write.items.LEAST_TURNS", 10)
    request = {"dataset": ("some/set",), "skip_bad_files": skip}
    serve()
    if skip:
        for index in (0, 1):
            convert(make_request(shard_index=index, num_shards=2, **request))
        meta = convert(make_request(merge_only=True, **request))
        assert meta is not None and list(meta.left_out) == [broken]
        return
    convert(make_request(shard_index=0, num_shards=2, **request))
    for last in ({"shard_index": 1, "num_shards": 2}, {"merge_only": True}):
        with pytest.raises(InputError, match=broken):
            convert(make_request(**request, **last))


def test_shares_are_of_whole_files_and_groups_and_together_all(monkeypatch):
    monkeypatch.setattr("moe.data.write.items.LEAST_TURNS", 4)
    files = [SourceFile(str(i), "", "parquet", 9, "") for i in range(12)]
    groups = np.array([-1, 0, 0, 0, -1, -1, 1, 1, 2, -1, -1, -1])
    shares = []
    for index in range(2):
        plan = Planning(files, "text", looked_at=12)
        plan.units.extend(Unit(i, file, 0, 1, 5) for i, file in enumerate(files))
        share_of(plan, groups, index, 2)
        shares.append([unit.file_index for unit in plan.units])
        assert plan.weight == 5 * len(plan.units)
    assert shares == [[0, 4, 6, 7, 9, 11], [1, 2, 3, 5, 8, 10]]


def test_work_begins_before_all_are_looked_at_with_files_of_two_kinds(
    serve, folder, make_request, tmp_path, monkeypatch
):
    """What names the documents is judged on a later kind all the same: .txt files have no ids."""
    for number in range(30):
        (folder / f"a{number:02}.txt").write_text("\n\n".join(make_texts(5, seed=number)))
    for number in range(3):
        write_parquet(folder / f"z{number}.parquet", make_texts(20, seed=50 + number), ids=["same"] * 20)
    monkeypatch.setattr(planning, "BEGIN", 4)
    monkeypatch.setattr(planning, "THREADS", 2)
    server = serve()
    request = make_request(dataset=("some/set",))
    space = open_workspace(request.out, overwrite=False)
    plan = make_plan(request, space)
    assert plan.planning.looked_at < 10 and plan.job.id_column is None, "the ids of z0.parquet tell nothing apart"
    looked_at = {path[-10:] for path in server.requests if path.endswith(".parquet")}
    assert len(looked_at) == 1
    meta = convert(request)
    assert meta.id_column is None and sum(meta.documents.values()) == 30 + 60


def test_the_time_left_counts_the_files_that_are_still_to_be_looked_at(tmp_path, monkeypatch):
    """Half of the bytes planned, half of these done: a quarter of the way."""
    sizes = [100, 300, 400, 400, 200, 200]
    files = [SourceFile(f"{i}.jsonl", str(tmp_path), "jsonl", size, "") for i, size in enumerate(sizes)]
    monkeypatch.setattr(planning, "BEGIN", 0)
    plan = Planning(files, "text")
    ahead = Ahead(plan)
    assert ahead.weight() == 1600, "of which nothing is known yet"
    for _ in itertools.islice(plan.one_by_one(), 3):
        pass
    plan.weight *= 3  # as text a packed file is more
    assert plan.looked_at_bytes == 800 and ahead.weight() == 4800
    done = SimpleNamespace(done=lambda unit: unit.file_index < 2 or None)
    work = run_units._Work(plan.units, done, np.full(6, -1), set(), ahead)
    assert [item and item.units[0].file_index for item in itertools.islice(work.items(), 1)] == [2]
    assert (work.behind, work.weight()) == (400, 4800)
    plan.keep(np.array([False, False, True, True, False, False]))
    assert [unit.file_index for unit in plan.units] == [2] and Ahead(plan).weight() == 800


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
