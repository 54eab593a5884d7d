import json

import pytest

from moe.common.errors import InputError
from moe.data.text import planning
from moe.data.text.plain_text import TXT_CHARS
from moe.data.text.planning import plan_units
from moe.data.text.reading import read_batches
from moe.data.text.readme import matcher
from moe.data.text.selection import select
from moe.data.text.sources import local_source
from tests.unit.data.conftest import make_texts, write_parquet

README = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*/*
- config_name: sample-10BT
  data_files:
  - split: train
    path: sample/10BT/*
  - split: test
    path: [sample/test/a.parquet, "sample/test/b-?.parquet"]
- config_name: plain
  data_files: "plain/**"
- config_name: folder
  data_dir: deep/er
---
# text
"""
NAMES = [
    "README.md",
    "data/CC-MAIN-2013/0.parquet",
    "data/CC-MAIN-2024/0.parquet",
    "data/odd.txt.bak",
    "deep/er/x/1.jsonl",
    "plain/a/b/c.jsonl.gz",
    "sample/100BT/0.parquet",
    "sample/10BT/0.parquet",
    "sample/10BT/1.parquet",
    "sample/test/a.parquet",
    "sample/test/b-1.parquet",
    "sample/test/b-10.parquet",
]


@pytest.mark.parametrize(
    ("config", "split", "expected"),
    [
        (None, "train", ["data/CC-MAIN-2013/0.parquet", "data/CC-MAIN-2024/0.parquet"]),
        ("sample-10BT", "train", ["sample/10BT/0.parquet", "sample/10BT/1.parquet"]),
        ("sample-10BT", "test", ["sample/test/a.parquet", "sample/test/b-1.parquet"]),
        ("plain", "train", ["plain/a/b/c.jsonl.gz"]),
        ("folder", "train", ["deep/er/x/1.jsonl"]),
    ],
)
def test_readme_header_names_the_files_of_a_config(config, split, expected):
    assert select(NAMES, README, dataset="x", config=config, split=split).files == expected


def test_files_of_other_configs_are_counted(tmp_path):
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(README if name == "README.md" else "")
    source = local_source([tmp_path], config="sample-10BT", split="train")
    assert len(source.files) == 2
    assert sum(one.reason.startswith("of another --config") for one in source.left_out) == 8


def test_unknown_config_and_split_name_what_there_is():
    with pytest.raises(InputError, match=r"--config sample-10.*there are default, folder, plain, sample-10BT"):
        select(NAMES, README, dataset="x", config="sample-10", split="train")
    with pytest.raises(InputError, match=r"--split dev.*there are train, test"):
        select(NAMES, README, dataset="x", config="sample-10BT", split="dev")
    with pytest.raises(InputError, match=r"--config a: x names no configs"):
        select(NAMES, None, dataset="x", config="a", split="train")


def test_split_in_file_names_is_honoured_without_a_header():
    names = ["data/test-00000.parquet", "data/train-00000.parquet", "data/train-00001.parquet"]
    assert select(names, None, dataset="x", config=None, split="train").files == names[1:]


def test_a_star_stays_inside_one_folder():
    assert matcher(["a/*"])("a/b") and not matcher(["a/*"])("a/b/c")
    assert matcher(["a/**/c"])("a/c") and matcher(["a/**/c"])("a/b/b/c")
    assert matcher(["a[0-3].x"])("a2.x") and not matcher(["a[0-3].x"])("a9.x")


def rows_of(folder):
    source = local_source([folder], config=None, split="train")
    units, bad = plan_units(source.files, "text")
    assert not bad
    return [[text for batch in read_batches(unit, "text") for text in batch.texts.to_pylist()] for unit in units]


@pytest.mark.parametrize("unit_bytes", [1, 50, 333, 5000, 1 << 30])
def test_jsonl_units_share_the_lines_without_loss_or_doubling(tmp_path, monkeypatch, unit_bytes):
    texts = make_texts(40)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    monkeypatch.setattr(planning, "UNIT_BYTES", unit_bytes)
    units = rows_of(tmp_path)
    assert [text for unit in units for text in unit] == texts
    assert len(units) == -(-(tmp_path / "a.jsonl").stat().st_size // unit_bytes)


def test_jsonl_line_that_starts_at_a_cut_is_read_once(tmp_path, monkeypatch):
    lines = [json.dumps({"text": f"line {i:03}"}) + "\n" for i in range(30)]
    assert len({len(line) for line in lines}) == 1
    (tmp_path / "a.jsonl").write_text("".join(lines))
    monkeypatch.setattr(planning, "UNIT_BYTES", 3 * len(lines[0]))
    assert rows_of(tmp_path) == [[f"line {i + j:03}" for j in range(3)] for i in range(0, 30, 3)]


def test_parquet_units_are_ranges_of_row_groups(tmp_path, monkeypatch):
    texts = make_texts(100)
    write_parquet(tmp_path / "a.parquet", texts, rows_per_group=10)
    monkeypatch.setattr(planning, "UNIT_BYTES", 6000)
    units = rows_of(tmp_path)
    assert 1 < len(units) < 10
    assert all(len(unit) % 10 == 0 for unit in units)
    assert [text for unit in units for text in unit] == texts


def test_text_file_is_cut_at_blank_lines_and_loses_nothing(tmp_path):
    paragraph = "word " * 400 + "\n\n"
    content = paragraph * 40 + "no blank line here " * TXT_CHARS
    (tmp_path / "book.txt").write_text(content)
    ((*pieces,),) = rows_of(tmp_path)
    decoded = [piece.decode() for piece in pieces]
    assert "".join(decoded) == content
    assert len(decoded) > 3
    assert decoded[0].endswith("\n\n")
    assert max(map(len, decoded)) <= 8 * TXT_CHARS


def test_unreadable_kind_of_file_is_refused(tmp_path):
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(InputError, match=r"a\.docx: cannot read this kind of file"):
        local_source([tmp_path / "a.docx"], config=None, split="train")
