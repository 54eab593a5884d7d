"""Shards of a run and their merge where files cannot be read."""

import gzip
import json
from pathlib import Path

import pytest

from moe.common.errors import InputError
from moe.data.write.convert import convert
from tests.unit.data.conftest import folder_bytes, make_texts

BROKEN = gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in make_texts(3000)).encode())


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Three files that are sound, one that breaks in its middle: nobody knows before it is read."""
    folder = tmp_path / "text"
    folder.mkdir()
    for number, name in enumerate("acd"):
        lines = [json.dumps({"text": text}) for text in make_texts(30, seed=number)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "b.jsonl.gz").write_bytes(BROKEN[: len(BROKEN) // 2])
    return folder


def shards(make_request, **changes) -> list[str]:
    """What each of two shards refuses, if it does."""
    refused = []
    for index in range(2):
        try:
            convert(make_request(shard_index=index, num_shards=2, **changes))
        except InputError as error:
            refused.append(str(error))
    return refused


def test_a_merge_takes_the_word_of_shards_for_files_that_break_while_they_are_read(
    text, make_request, tmp_path, capsys
):
    """Each shard ended with 0, the merge with 2 for ever: "run the shards that miss them"."""
    convert(make_request(out=tmp_path / "alone", skip_bad_files=True))
    capsys.readouterr()
    assert shards(make_request, skip_bad_files=True) == []
    told = capsys.readouterr().out
    assert "1 file cannot be used:\n  b.jsonl.gz: " in told
    assert "shard 1 of 2 is done: 1 units, 1 file skipped;" in told and "shard 0 of 2 is done: 2 units;" in told
    with pytest.raises(InputError, match=r"1 file cannot be used:\n  b\.jsonl\.gz: .*\n.*--skip-bad-files"):
        convert(make_request(merge_only=True))
    meta = convert(make_request(merge_only=True, skip_bad_files=True))
    assert list(meta.left_out) == ["b.jsonl.gz"] and "cannot be read to its end" in meta.left_out["b.jsonl.gz"]
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "alone")
    assert not (tmp_path / "out.partial").exists()


def test_a_shard_that_ends_for_a_file_leaves_its_record_too(text, make_request):
    assert len(shards(make_request)) == 1
    with pytest.raises(InputError, match=r"1 file cannot be used:\n  b\.jsonl\.gz"):
        convert(make_request(merge_only=True))
    assert convert(make_request(merge_only=True, skip_bad_files=True)).left_out


def test_the_record_of_a_file_that_was_fixed_since_counts_no_more(text, make_request, tmp_path):
    shards(make_request, skip_bad_files=True)
    (text / "b.jsonl.gz").write_bytes(BROKEN)
    with pytest.raises(InputError, match=r"1 of 4 units are not done.*b\.jsonl\.gz; run the shards"):
        convert(make_request(merge_only=True, skip_bad_files=True))
    assert shards(make_request) == []
    assert not list((tmp_path / "out.partial/failed").iterdir())
    assert not convert(make_request(merge_only=True)).left_out
    convert(make_request(out=tmp_path / "alone"))
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "alone")


def test_a_damaged_record_is_none(text, make_request, tmp_path):
    shards(make_request, skip_bad_files=True)
    (tmp_path / "out.partial/failed/1-of-2.json").write_text("[")
    with pytest.raises(InputError, match="1 of 4 units are not done"):
        convert(make_request(merge_only=True, skip_bad_files=True))
    assert shards(make_request, skip_bad_files=True) == []
    assert convert(make_request(merge_only=True, skip_bad_files=True)).left_out
