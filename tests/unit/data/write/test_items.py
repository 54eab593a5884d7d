"""Many small files made together: the bytes are those of files made one by one, whatever happens in between."""

import json
import re

import numpy as np
import pytest

from moe.common.errors import InputError
from moe.data.text import planning
from moe.data.text.files import SourceFile, Unit
from moe.data.write import items, packing
from moe.data.write.convert import convert
from tests.unit.data.conftest import folder_bytes, make_texts, write_parquet

FILES = 30


@pytest.fixture
def text(tmp_path):
    """30 files of 1 to 4 documents each, and one that is too large to be made with others."""
    folder = tmp_path / "text"
    folder.mkdir()
    texts = make_texts(80, seed=5)
    for number in range(FILES):
        rows = [texts.pop() for _ in range(1 + number % 4)]
        lines = [json.dumps({"id": f"{number}-{i}", "text": row}) for i, row in enumerate(rows)]
        (folder / f"{number:02}.jsonl").write_text("\n".join(lines) + "\n")
    lines = [json.dumps({"id": f"large-{i}", "text": row}) for i, row in enumerate(make_texts(40, seed=6))]
    (folder / "17a.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def small(monkeypatch):
    """Items of at most 4 files; none is opened before its turn but the first two."""
    monkeypatch.setattr(items, "MANY", 10)
    monkeypatch.setattr(items, "ITEM_FILES", 4)
    monkeypatch.setattr(items, "SMALL_BYTES", 5000)
    monkeypatch.setattr(planning, "BEGIN", 2)


@pytest.fixture
def one_by_one(text, small, make_request, tmp_path, monkeypatch):
    """The bytes of a conversion that makes each file by itself."""

    def bytes_of(**changes) -> dict[str, bytes]:
        with monkeypatch.context() as alone:
            alone.setattr(items, "MANY", 1 << 30)
            convert(make_request(out=tmp_path / "alone", **changes))
        return folder_bytes(tmp_path / "alone")

    return bytes_of


def made_in(tmp_path, monkeypatch, request) -> list[str]:
    """Folders of units and items of a conversion that ends before its merge."""
    with monkeypatch.context() as stopped:
        stopped.setattr("moe.data.write.convert.settle", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            convert(request)
    return sorted(path.parent.name for path in (tmp_path / "out.partial").glob("units/*/done.json"))


@pytest.mark.parametrize("workers", [1, 2])
def test_the_bytes_are_those_of_files_made_one_by_one(one_by_one, make_request, tmp_path, workers):
    convert(make_request(workers=workers))
    assert folder_bytes(tmp_path / "out") == one_by_one()


def test_a_folder_holds_the_units_of_many_files_and_is_not_made_again(one_by_one, make_request, tmp_path, monkeypatch):
    made = made_in(tmp_path, monkeypatch, make_request())
    assert [len(name) > 20 for name in made].count(True) == 8  # 18 and 12 files in fours
    assert len(made) == 9  # and the large one
    with monkeypatch.context() as never:
        never.setattr("moe.data.write.pool.convert_item", lambda *_: 1 / 0)
        convert(make_request())
    assert folder_bytes(tmp_path / "out") == one_by_one()


@pytest.mark.parametrize("limit", [{"max_documents": n} for n in (1, 10, 23, 70)] + [{"max_tokens": 1500}])
def test_a_limit_inside_of_an_item_takes_the_same_documents(one_by_one, make_request, tmp_path, limit):
    convert(make_request(val_fraction=0.0, seq_len=8, **limit))
    assert folder_bytes(tmp_path / "out") == one_by_one(val_fraction=0.0, seq_len=8, **limit)


def test_files_of_an_item_that_cannot_be_read_are_named_the_others_kept_and_fixed_ones_added(
    one_by_one, text, make_request, tmp_path, monkeypatch
):
    expected = one_by_one()
    good = {name: (text / name).read_bytes() for name in ("05.jsonl", "06.jsonl", "20.jsonl")}
    for name in good:
        (text / name).write_bytes("no utf-8, as some write it".encode("utf-16"))
    for _ in range(2):
        with pytest.raises(InputError, match=r"05\.jsonl.*UTF-16[\s\S]*06\.jsonl[\s\S]*20\.jsonl"):
            convert(make_request())
        made = len(list((tmp_path / "out.partial").glob("units/*/done.json")))
        assert made == 9, "each item without its bad files"
    for name, content in good.items():
        (text / name).write_bytes(content)
    made = made_in(tmp_path, monkeypatch, make_request())
    assert len(made) == 11, "two of one item, and one"
    convert(make_request())
    assert folder_bytes(tmp_path / "out") == expected


def test_a_small_file_that_holds_much_is_made_by_itself(one_by_one, make_request, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "WINDOW_TOKENS", 150)  # less than some files have
    made = made_in(tmp_path, monkeypatch, make_request())
    assert [len(name) > 20 for name in made].count(False) > 1
    convert(make_request())
    assert folder_bytes(tmp_path / "out") == one_by_one()


def test_shards_of_a_run_share_items_and_are_merged(one_by_one, make_request, tmp_path):
    for index in (1, 0):
        convert(make_request(shard_index=index, num_shards=2))
    convert(make_request(merge_only=True))
    assert folder_bytes(tmp_path / "out") == one_by_one()


@pytest.mark.parametrize("few", [True, False])
def test_a_shard_speaks_of_files_of_its_own_share_alone(make_request, tmp_path, monkeypatch, few):
    """Each ended with 2 for what another is to report; the merge names all."""
    monkeypatch.setattr(items, "LEAST_TURNS", 99 if few else 2)
    for number in range(8):
        write_parquet(tmp_path / "text" / f"{number}.parquet", make_texts(20, seed=number))
    (tmp_path / "text" / "2.parquet").write_bytes(b"PAR1 no table PAR1")
    (tmp_path / "text" / "4.parquet").write_bytes(b"")
    assert convert(make_request(shard_index=1, num_shards=2)) is None
    with pytest.raises(InputError, match=r"^2 files cannot be used:\n.*2\.parquet.*\n.*4\.parquet"):
        convert(make_request(shard_index=0, num_shards=2))
    with pytest.raises(InputError, match=r"2\.parquet.*\n.*4\.parquet"):
        convert(make_request(merge_only=True))
    thirds = []
    for index in range(3):
        try:
            convert(make_request(shard_index=index, num_shards=3, out=tmp_path / "thirds"))
        except InputError as error:
            thirds.append([index, *re.findall(r"\d\.parquet", str(error))])
    assert thirds == [[1, "4.parquet"], [2, "2.parquet"]]


def test_items_follow_from_the_listing_alone(monkeypatch):
    monkeypatch.setattr(items, "MANY", 5)
    monkeypatch.setattr(items, "ITEM_FILES", 3)
    monkeypatch.setattr(items, "ITEM_BYTES", 100)
    monkeypatch.setattr(items, "SMALL_BYTES", 60)
    files = [SourceFile(str(i), "", "txt", size, "") for i, size in enumerate([10, 10, 10, 10, 70, 50, 60, 5, 5, 5])]
    assert items.groups_of(files).tolist() == [0, 0, 0, 1, -1, 2, 3, 3, 3, 4]
    assert (items.groups_of(files[:4]) == -1).all(), "few files stay by themselves"
    monkeypatch.setattr(items, "HUB_FILES", 2)
    hub = [SourceFile(str(i), "", "txt", 10, "", remote=True) for i in range(5)]
    assert items.groups_of(hub).tolist() == [0, 0, 1, 1, 2]


def test_no_further_unit_yet_is_passed_on_between_items():
    units = [Unit(i, SourceFile(str(i), "", "txt", 1, ""), 0, 1, 1) for i in range(4)]
    planned = [units[0], None, units[1], units[2], None, units[3]]
    found = list(items.items_of(planned, np.array([0, 0, 1, -1])))
    assert [item and [unit.file_index for unit in item.units] for item in found] == [None, [0, 1], None, [2], [3]]
