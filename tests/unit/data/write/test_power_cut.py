"""What a power cut leaves of work that was done: files without content, under names that say complete."""

import shutil
from pathlib import Path

import pytest

from moe.common.errors import InputError
from moe.data.text import planning
from moe.data.write import items
from moe.data.write.convert import convert
from tests.unit.data.conftest import folder_bytes, make_texts, write_parquet

FILES = 12


@pytest.fixture(params=["alone", "together"])
def begun(request, tmp_path: Path, make_request, monkeypatch) -> Path:
    """The units of a conversion that was stopped before its merge, each by itself or four together."""
    if request.param == "together":
        monkeypatch.setattr(items, "MANY", 10)
        monkeypatch.setattr(items, "ITEM_FILES", 4)
        monkeypatch.setattr(planning, "BEGIN", 2)
    for number in range(FILES):
        write_parquet(tmp_path / f"text/{number:02}.parquet", make_texts(20, seed=number))
    with monkeypatch.context() as stopped:
        stopped.setattr("moe.data.write.convert.settle", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            convert(make_request())
    return tmp_path / "out.partial/units"


def refused(request) -> str:
    with pytest.raises(InputError) as caught:
        convert(request)
    return str(caught.value)


@pytest.mark.parametrize("name", ["done.json", "lengths.npy", "hashes.npy", "train.rest"])
def test_files_of_units_that_have_no_content_are_named_and_made_anew(
    begun: Path, make_request, tmp_path: Path, name: str
) -> None:
    """B13: a traceback at every start, with --dry-run too; of a shard or rest "run with --overwrite", all work lost."""
    first, *_, last = sorted(begun.iterdir())
    for folder in (first, last):
        (folder / name).write_bytes(b"")
    told = refused(make_request())
    assert f"/{name}: " in told and "power cut" in told and "\n" not in told.replace("out.partial: ", "")
    assert f"remove {first}" in told, "the place to remove"
    if name != "train.rest":  # which may hold nothing
        assert f"{first}, {last} and run the same command again" in told, "each of them, at once"
    shutil.rmtree(first)
    shutil.rmtree(last)
    before = {path: path.stat().st_ino for path in begun.rglob("done.json")}
    assert before
    convert(make_request())
    convert(make_request(out=tmp_path / "anew"))
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "anew")


def test_damaged_work_is_replaced_where_that_is_asked_for(begun: Path, make_request, tmp_path: Path) -> None:
    """B13: --overwrite read the damaged mark too; half of a mark, and one of another shape, are damage as well."""
    marks = sorted(begun.glob("*/done.json"))
    marks[0].write_bytes(marks[0].read_bytes()[:40])
    marks[1].write_text("[]")
    assert "done.json: is no record of a finished unit" in refused(make_request())
    convert(make_request(overwrite=True))
    assert (tmp_path / "out/meta.json").exists()


def test_a_unit_without_its_mark_is_named(begun: Path, make_request) -> None:
    """B13: OSError: Directory not empty, as a traceback."""
    unit = sorted(begun.iterdir())[0]
    (unit / "done.json").unlink()
    told = refused(make_request())
    assert f"{unit} holds no done.json" in told and "remove it and run the same command again" in told
    shutil.rmtree(unit)
    convert(make_request())
