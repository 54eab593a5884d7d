"""What a file costs the process that plans, records and merges: some hundred bytes, however many there are."""

import io
import json
import tracemalloc

import numpy as np

from moe.data.text import planning
from moe.data.text.files import Source, SourceFile
from moe.data.text.local import local_source
from moe.data.text.planning import Planning
from moe.data.text.tables_of_files import FileTable
from moe.data.write.convert import publish
from moe.data.write.gather import Parts, gather
from moe.data.write.items import groups_of, items_of
from moe.data.write.plan import Plan
from moe.data.write.report import summary
from moe.data.write.state import open_workspace
from moe.data.write.unit import Job
from moe.data.write.unit_store import UnitStore

FEW, MANY = 5000, 15_000  # beyond what is held at most (gather.ARRAYS_HELD)
BYTES_A_FILE, LISTED_BYTES = 100, 170  # 73 at work, 139 while a folder is listed: each name is in memory then
JOB = Job(2048, "uint16", 0, 17, 0, "text", "id", None, None, None, "any", "any", None, None)


class InMemory:
    """The folder of the units of files with one document each, made in items."""

    def __init__(self, items):
        self.content = {}
        for item in items:
            marks = {unit.name: self.mark(i, unit) for i, unit in enumerate(item.units)}
            self.content[f"{item.name}/done.json"] = json.dumps({"units": marks}).encode()
            for name, array in (
                ("lengths", np.full(len(marks), 5, np.uint32)),
                ("hashes", np.array([unit.key for unit in item.units], np.uint64) << np.uint64(13)),
            ):
                np.save(file := io.BytesIO(), array)
                self.content[f"{item.name}/{name}.npy"] = file.getvalue()

    @staticmethod
    def mark(place, unit):
        stat = [unit.file.size, 10**18 + unit.key % 997, 10**18 + unit.file_index, 10**6 + unit.file_index, 64769]
        return {
            "file": unit.file.name,
            "file_version": unit.file.version,
            "documents": {"train": 1, "val": 0},
            "tokens": {"train": 0, "val": 0},
            "text_bytes": unit.file.size,
            "skipped": {"counts": {}, "examples": {}},
            "counts": {"named": 1},
            "limited": False,
            "read": {"begin": 0, "end": unit.file.size, "xxh128": f"{unit.key:032x}", "stat": stat},
            "splits": {split: {"shards": [], "rest": 0} for split in ("train", "val")},
            "at": {"documents": place, "train": [0, 0, 0], "val": [0, 0, 0]},
        }

    def sizes(self):
        return {name: len(content) for name, content in self.content.items()}

    def read(self, name):
        return self.content.get(name)


def files_of(count):
    for i in range(count):
        size, stat = 1000 + i, (1000 + i, 10**18 + i, 10**18 + 2 * i, 10**6 + i, 64769)
        yield SourceFile(
            f"{i // 1000}/{i:07}.jsonl",
            f"/data/{i // 1000}/{i:07}.jsonl",
            "jsonl",
            size,
            str(10**38 + i),
            stat=stat,
        )


def units_of(files):
    planned = Planning(files, "text")
    planned.all()
    assert len(planned.units) == len(files)
    return planned


def test_a_file_costs_some_hundred_bytes(tmp_path, make_request, monkeypatch):
    monkeypatch.setattr(planning, "BEGIN", 0)  # none is opened before its turn

    def peak_of(count):
        """Bytes that Python held at most."""
        files = list(files_of(count))
        folder = InMemory(items_of(units_of(files).units, groups_of(files)))
        request = make_request(out=tmp_path / f"{count}")
        tracemalloc.start()
        planned = units_of(FileTable(files_of(count)))
        source = Source(planned.files, None)
        plan = Plan(request, source, {"tokenizer": "any"}, planned, JOB, 9, groups_of(source.files))
        space = open_workspace(request.out, overwrite=False)
        with space.lock(plan.identity, source.files, shared=False):
            store = UnitStore(folder)
            assert all(store.done(unit) for unit in planned.units)
            found = gather(Parts(store, planned.units), JOB.layout)
            meta, of_the_run = publish(plan, space, found, {}, 0.0)
        summary(meta, request.out, of_the_run)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        report = json.loads((tmp_path / f"{count}" / "conversion.json").read_bytes())
        assert report["files"] == [[file.name, file.version] for file in files]
        assert report["stats"][7] == [1007, 10**18 + 7, 10**18 + 14, 10**6 + 7, 64769]
        assert [row[0] for row in report["reads"]] == list(range(count)) and report["reads"][5][1]["end"] == 1005
        return peak

    found = (peak_of(MANY) - peak_of(FEW)) / (MANY - FEW)
    assert found < BYTES_A_FILE, f"{found:.0f} bytes"


def test_a_listed_file_costs_its_name(tmp_path):
    """A listing begins with no more than that, also one whose files were sampled before."""
    for number in range(MANY):
        folder = tmp_path / f"{MANY if number >= FEW else FEW}" / f"{number // 1000:04}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:07}.jsonl").write_bytes(b"%d" % number)

    def peak_of(folder):
        tracemalloc.start()
        count = len(local_source([folder], config=None, split="train").files)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak, count

    peak_of(tmp_path / f"{FEW}")  # what is loaded once
    (few, less), (many, more) = peak_of(tmp_path / f"{FEW}"), peak_of(tmp_path / f"{MANY}")
    found = (many - few) / (more - less)
    assert found < LISTED_BYTES, f"{found:.0f} bytes"
