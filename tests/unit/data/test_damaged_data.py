"""What a user can break in a converted dataset or a folder of text is told in one message; never a traceback."""

import json
import os
from pathlib import Path

import pytest

from moe.cli.main import main
from moe.common.errors import DataError, InputError
from moe.data import read_meta
from moe.data.read.verify import read_samples, verify_split
from moe.data.text.planning import plan_units
from moe.data.text.sources import local_source
from moe.data.write.convert import convert
from tests.damage import edit
from tests.unit.data.conftest import make_texts, write_parquet
from tests.unit.data.read.loaders import train_loader


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("shards",), {}),
        (("shards",), [3]),
        (("shards", 0, "samples"), -1),
        (("shards", 0, "samples"), 1.5),
        (("shards", 0, "samples"), "100"),
        (("shards", 0, "samples"), 2**70),
        (("shards", 0, "column_encodings"), ...),
        (("shards", 0, "column_encodings"), [1]),
        (("shards", 0, "raw_data"), ...),
        (("shards", 0, "raw_data", "bytes"), "9"),
        (("shards", 0, "raw_data", "hashes"), ...),
        (("shards", 0, "raw_data", "basename"), 5),
    ],
)
def test_an_index_with_a_wrong_type_is_named_by_its_place(token_folder: Path, keys: tuple, value: object) -> None:
    edit(token_folder / "train/index.json", *keys, value=value)
    place = keys[-1]
    (error,) = verify_split(token_folder / "train", full=True)
    assert "train/index.json: not an MDS index (shards" in error and str(place) in error
    with pytest.raises(InputError, match=r"train/index\.json: not an MDS index"):
        list(train_loader(token_folder))
    with pytest.raises(InputError, match=r"train/index\.json: not an MDS index"):
        read_samples(token_folder / "train", 0, 1)


@pytest.mark.parametrize("key", ["format", "version", "column_names", "column_sizes", "zip_data", "size_limit"])
def test_an_index_that_lacks_what_streaming_reads_is_named(token_folder: Path, key: str) -> None:
    edit(token_folder / "train/index.json", "shards", 0, key, value=...)
    with pytest.raises(InputError, match=r"train/index\.json: not an MDS index"):
        list(train_loader(token_folder))


@pytest.mark.parametrize("more", [1, 10_000])
def test_more_samples_than_the_shard_holds_are_told(token_folder: Path, more: int) -> None:
    """A few more fit into the bytes of the shard's head: then it is met when the shard is opened."""
    index = token_folder / "train/index.json"
    held = json.loads(index.read_text())["shards"][0]["samples"]
    edit(index, "shards", 0, "samples", value=held + more)
    with pytest.raises((InputError, DataError), match=r"shard\.00000\.mds.* sequences"):
        list(train_loader(token_folder))
    if more > 1:
        assert "sequences of index.json" in verify_split(token_folder / "train")[0]


def test_hashes_of_another_kind_cannot_verify_and_say_so(token_folder: Path) -> None:
    edit(token_folder / "train/index.json", "shards", 0, "raw_data", "hashes", value={"sha1": "x"})
    assert verify_split(token_folder / "train") == []
    assert "holds no xxh64 of it" in verify_split(token_folder / "train", full=True)[0]


@pytest.mark.parametrize("name", ["train/index.json", "meta.json", "conversion.json", "train/shard.00000.mds"])
def test_a_folder_or_a_dangling_link_in_the_place_of_a_file_is_told(
    tmp_path: Path, make_request, capsys, name: str
) -> None:
    write_parquet(tmp_path / "text/a.parquet", make_texts(80))
    convert(make_request())
    for hinder in (lambda path: path.mkdir(), lambda path: path.symlink_to("nowhere")):
        path = tmp_path / "out" / name
        path.rmdir() if path.is_dir() else path.unlink()
        hinder(path)
        code = main(["inspect", str(tmp_path / "out")])
        told = capsys.readouterr()
        # without the report of its making a dataset is whole
        assert (code == 2 and name.split("/")[-1] in told.out + told.err) or (name, code) == ("conversion.json", 0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "1"),
        ("format", ...),
        ("seq_len", "32"),
        ("seq_len", -32),
        ("samples", 5),
        ("samples", {"train": 1}),
        ("samples", {"train": -1, "val": 0}),
        ("tokens_per_document", {}),
        ("documents", None),
        ("vocab_size", 1.5),
        ("eos_id", None),
        ("skipped", {"empty": "1"}),
        ("versions", []),
    ],
)
def test_a_meta_with_a_wrong_type_is_named_by_its_place(
    tmp_path: Path, make_request, key: str, value: object, capsys
) -> None:
    write_parquet(tmp_path / "text/a.parquet", make_texts(40))
    convert(make_request())
    edit(tmp_path / "out/meta.json", key, value=value)
    with pytest.raises(InputError, match=rf"meta\.json cannot be read \({key}.* is needed\)"):
        read_meta(tmp_path / "out")
    assert main(["inspect", str(tmp_path / "out")]) == 2
    capsys.readouterr()


def test_a_damaged_report_of_the_conversion_is_named(tmp_path: Path, make_request, capsys) -> None:
    write_parquet(tmp_path / "text/a.parquet", make_texts(40))
    convert(make_request())
    edit(tmp_path / "out/conversion.json", "seconds", value="soon")
    assert main(["inspect", str(tmp_path / "out")]) == 2
    assert "conversion.json: is damaged (seconds is 'soon'; a number is needed)" in capsys.readouterr().err


def test_a_dangling_link_among_the_texts_is_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "text"
    write_parquet(folder / "a.parquet", make_texts(5))
    os.symlink("nowhere", folder / "b.parquet")
    os.symlink("c.parquet", folder / "c.parquet")  # to itself
    source = local_source([folder], config=None, split="train")
    units, errors = plan_units(source.files, "text")
    assert [unit.file.name for unit in units] == ["a.parquet"]
    assert [error.file for error in errors] == ["b.parquet", "c.parquet"]
    assert "is a link to" in str(errors[0]) and "which is not there" in str(errors[0])
