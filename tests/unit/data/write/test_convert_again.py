"""A conversion into a place where something is: work to go on with, a finished dataset, somebody's folder."""

import json
import shutil

import pytest

from moe.common.errors import InputError
from moe.data import read_meta
from moe.data.write.convert import convert
from tests.unit.data.conftest import folder_bytes, make_texts, write_parquet


def test_changed_flag_is_refused_with_both_values(tmp_path, make_request):
    write_parquet(tmp_path / "text" / "a.parquet", make_texts(60))
    (tmp_path / "text" / "b.parquet").write_bytes(b"broken")
    with pytest.raises(InputError):
        convert(make_request())
    with pytest.raises(InputError, match=r"seq_len: 32 then, 64 now"):
        convert(make_request(seq_len=64))
    with pytest.raises(InputError, match=r"seed: 17 then, 18 now"):
        convert(make_request(seed=18))
    convert(make_request(seed=18, overwrite=True, skip_bad_files=True))
    assert read_meta(tmp_path / "out").seed == 18


def test_changed_source_and_tokenizer_are_refused_on_resume(tmp_path, make_request, tokenizer_folder):
    write_parquet(tmp_path / "text" / "a.parquet", make_texts(60))
    (tmp_path / "text" / "b.parquet").write_bytes(b"broken")
    with pytest.raises(InputError):
        convert(make_request())
    other = tmp_path / "other-tokenizer"
    shutil.copytree(tokenizer_folder, other)
    spec = json.loads((other / "tokenizer.json").read_text())
    spec["model"]["merges"].pop()
    (other / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(InputError, match=r"tokenizer: \w{64} then, \w{64} now"):
        convert(make_request(tokenizer=str(other)))
    write_parquet(tmp_path / "text" / "a.parquet", make_texts(61))
    with pytest.raises(InputError, match=r"a\.parquet: its content changed \(version \d+ then, \d+ now\)"):
        convert(make_request())
    (tmp_path / "text" / "b.parquet").unlink()
    with pytest.raises(InputError, match=r"b\.parquet: is not there now"):
        convert(make_request())


def test_complete_output_is_left_alone_and_never_harmed(tmp_path, make_request, capsys):
    write_parquet(tmp_path / "text" / "a.parquet", make_texts(60))
    convert(make_request())
    before = folder_bytes(tmp_path / "out")
    assert convert(make_request()) == read_meta(tmp_path / "out")
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"seed: 17 then, 5 now"):
        convert(make_request(seed=5))
    write_parquet(tmp_path / "text" / "a.parquet", ["", ""])
    with pytest.raises(InputError, match=r"a\.parquet: its content changed \(version \d+ then, \d+ now\)"):
        convert(make_request())
    with pytest.raises(InputError, match="no documents"):
        convert(make_request(overwrite=True))
    assert folder_bytes(tmp_path / "out") == before


def test_foreign_folder_is_never_replaced(tmp_path, make_request):
    write_parquet(tmp_path / "text" / "a.parquet", make_texts(60))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="holds something else"):
        convert(make_request(overwrite=True))
    assert (tmp_path / "out" / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"plan.json": '{"a": 1}', "units/mine.txt": "x", "merged/mine.txt": "y"}, "merged/mine.txt, units/mine.txt"),
        ({"plan.json": '{"a": 1}'}, "plan.json is not of a conversion"),
        ({"plan.json": "buy milk"}, "plan.json is not of a conversion"),
        ({"plan.json": '{"request": {}, "files": []}', "units/00000-0000000000000/mine.txt": "x"}, "mine.txt"),
    ],
)
def test_work_that_only_has_our_names_is_never_removed(tmp_path, make_request, files, told):
    """A folder OUT.partial of somebody else's, with a plan.json, units/ and merged/ of its own."""
    write_parquet(tmp_path / "text" / "a.parquet", make_texts(60))
    for name, content in files.items():
        (tmp_path / "out.partial" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out.partial" / name).write_text(content)
    for overwrite in (False, True):
        with pytest.raises(InputError, match=told) as caught:
            convert(make_request(overwrite=overwrite))
        assert "--overwrite" not in str(caught.value)
    for name, content in files.items():
        assert (tmp_path / "out.partial" / name).read_text() == content


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("left", [[".lock", ".plan.json.4711"], [".plan.json.4711"], [".lock", ".plan.json.9a0b1c2d"]])
def test_a_start_that_was_killed_while_it_wrote_its_first_plan_is_no_work(tmp_path, make_request, left, overwrite):
    """Killed there, or another shard is at it in this moment: "holds no plan.json", with --overwrite too."""
    write_parquet(tmp_path / "text" / "a.parquet", make_texts(60))
    (tmp_path / "out.partial").mkdir()
    for name in left:
        (tmp_path / "out.partial" / name).write_text('{"format": 2, "requ' * name.startswith(".plan"))
    convert(make_request(overwrite=overwrite))
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("left", ["units/00000-0000000000000/done.json", "merging.json"])
def test_work_without_its_plan_is_refused_unless_all_is_complete(tmp_path, make_request, capsys, left, dry_run):
    write_parquet(tmp_path / "text" / "a.parquet", make_texts(60))
    path = tmp_path / "out.partial" / left
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with pytest.raises(InputError, match=r"out\.partial: holds no plan\.json of a conversion; remove it"):
        convert(make_request(dry_run=dry_run))
    shutil.move(tmp_path / "out.partial", tmp_path / "aside")
    convert(make_request())
    shutil.move(tmp_path / "aside", tmp_path / "out.partial")
    convert(make_request(dry_run=dry_run))
    assert "nothing to do" in capsys.readouterr().out and path.read_text() == "{}"


def test_damaged_work_of_ours_is_still_replaced(tmp_path, make_request):
    write_parquet(tmp_path / "text" / "a.parquet", make_texts(60))
    (tmp_path / "text" / "b.parquet").write_bytes(b"broken")
    with pytest.raises(InputError):
        convert(make_request())
    (tmp_path / "out.partial" / "plan.json").write_text("{")
    convert(make_request(overwrite=True, skip_bad_files=True))
    (tmp_path / "out" / "meta.json").write_text("{")
    convert(make_request(overwrite=True, skip_bad_files=True))
    assert read_meta(tmp_path / "out").seed == 17


@pytest.mark.parametrize("content", ['{"my": "notes"}', "[]", "notes"])
def test_a_dataset_with_a_meta_json_of_others_is_never_replaced(tmp_path, make_request, content):
    """A folder of MDS shards and a meta.json that no conversion wrote."""
    write_parquet(tmp_path / "text" / "a.parquet", make_texts(60))
    convert(make_request())
    (tmp_path / "out" / "conversion.json").unlink()
    (tmp_path / "out" / "meta.json").write_text(content)
    before = folder_bytes(tmp_path / "out")
    with pytest.raises(InputError, match=r"meta\.json is not of a conversion"):
        convert(make_request(overwrite=True))
    assert folder_bytes(tmp_path / "out") == before


def test_second_conversion_into_the_same_folder_is_refused_while_one_runs(tmp_path, make_request):
    import fcntl

    write_parquet(tmp_path / "text" / "a.parquet", make_texts(60))
    (tmp_path / "out.partial").mkdir()
    with open(tmp_path / "out.partial" / ".lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another conversion is at work"):
            convert(make_request())
