"""Which files a dataset is: the walk, the choice by names and README, and names that are of one file each."""

import errno
import gzip
import os
import random
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moe.common.errors import InputError
from moe.data.text.files import KINDS
from moe.data.text.readme import matcher, read_configs
from moe.data.text.selection import left_out_lines
from moe.data.text.sources import is_hub_name, resolve
from tests.chaos.foreign import readme_header


def lay(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text('{"text": "of ' + name.encode("utf-8", "replace").decode() + '"}\n')
    return root


def source_of(*roots: Path, split: str = "train", config: str | None = None, outputs: tuple[Path, ...] = ()):
    return resolve(dataset=tuple(map(str, roots)), config=config, split=split, revision=None, outputs=outputs)


def names_of(*roots: Path, **more) -> list[str]:
    return [file.name for file in source_of(*roots, **more).files]


def test_a_split_is_not_guessed_from_one_of_ten_names(tmp_path):
    """A6: nine books and a train: all ten are used."""
    lay(tmp_path, *[f"tale-{i}.jsonl" for i in range(9)], "the-ghost-train.jsonl")
    assert len(names_of(tmp_path)) == 10


@pytest.mark.parametrize(
    ("names", "split", "expected"),
    [
        (["train-0.jsonl", "test-0.jsonl"], "train", ["train-0.jsonl"]),
        (["train/a.jsonl", "b.jsonl", "val/c.jsonl"], "train", ["b.jsonl", "train/a.jsonl"]),
        (["my-train.jsonl", "my-test.jsonl"], "train", ["my-train.jsonl"]),
        (["a.jsonl", "acid-test.jsonl"], "train", ["a.jsonl", "acid-test.jsonl"]),
        (["a.jsonl", "b-test.jsonl"], "test", ["b-test.jsonl"]),
        (["Train.jsonl", "Test.jsonl"], "train", ["Train.jsonl"]),
        (["TRAIN/a.jsonl", "Test/b.jsonl", "Val.jsonl"], "train", ["TRAIN/a.jsonl"]),
        (["train1.jsonl", "train 2.jsonl", "test1.jsonl"], "train", ["train 2.jsonl", "train1.jsonl"]),
        (["train1/a.jsonl", "test2/a.jsonl", "b.jsonl"], "train", ["b.jsonl", "train1/a.jsonl"]),
        (["sft-Train.jsonl", "sft-Eval 2.jsonl"], "train", ["sft-Train.jsonl"]),
        (["Train.jsonl", "DEV.jsonl"], "dev", ["DEV.jsonl"]),
    ],
)
def test_what_names_decide_is_told(tmp_path, names, split, expected):
    """A6, A20: a choice by names stands in a line of its own, and so does every file that it leaves out."""
    source = source_of(lay(tmp_path, *names), split=split)
    assert [file.name for file in source.files] == expected
    assert source.notes
    assert sorted([*expected, *(one.name for one in source.left_out)]) == sorted(names)


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (["a.jsonl", "b.jsonl"], "test"),
        (["test-0.jsonl", "validation-0.jsonl"], "train"),
        (["a.jsonl", "acid-test.jsonl", "night-train.jsonl"], "train"),
    ],
)
def test_a_split_without_a_match_or_with_two_meanings_is_refused(tmp_path, names, split):
    """A6: an explicit split that no file has is refused."""
    with pytest.raises(InputError, match=f"--split {split}"):
        source_of(lay(tmp_path, *names), split=split)


def test_each_real_file_is_read_once(tmp_path):
    """A7: hidden folders, links, hard links, cycles and a file given twice: nothing comes twice, and all is told."""
    text = lay(tmp_path / "text", "a.jsonl", "sub/b.jsonl", ".cache/a.jsonl", "sub/.old/c.jsonl")
    far = lay(tmp_path / "far", "z.jsonl")
    os.symlink(text / "a.jsonl", text / "0-link.jsonl")
    os.link(text / "a.jsonl", text / "hard.jsonl")
    os.symlink(far, text / "linked")
    os.symlink(text / "sub", text / "again")
    os.symlink(text, text / "sub" / "loop")
    os.symlink(tmp_path, text / "up")
    source = source_of(text, text / "sub" / "b.jsonl", text / "sub")
    assert [file.name for file in source.files] == ["a.jsonl", "linked/z.jsonl", "sub/b.jsonl"]
    left = {one.name for one in source.left_out}
    assert {"0-link.jsonl", "hard.jsonl", "again/", "sub/loop/", "up/", ".cache/", "sub/.old/"} <= left
    assert all(": " in line for line in left_out_lines(source.left_out))


@pytest.mark.parametrize(
    "titles",
    [
        ["Moby Dick.txt", "Train Dreams.txt", "Val Kilmer.txt", "Test Cricket.txt"],
        ["Moby Dick.txt", "A Train to Pakistan.txt", "The Test.txt"],
    ],
)
def test_titles_are_no_splits(tmp_path, titles):
    """A20: a space is no border of a word in a name."""
    source = source_of(lay(tmp_path, *titles))
    assert [file.name for file in source.files] == sorted(titles) and source.left_out == source.notes == []


def test_files_that_cannot_be_read_are_no_copies_of_each_other(tmp_path, monkeypatch):
    """A22: both have the version of what cannot be read."""

    def refuse(path, kind):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr("moe.data.text.content.sample_of", refuse)
    assert source_of(lay(tmp_path, "a.jsonl", "b.jsonl")).notes == []


def test_bytes_that_are_read_twice_are_told(tmp_path):
    """A22: `cp` and `gzip -k` gave every document twice without a word."""
    lay(tmp_path, "a.jsonl", "b.jsonl", "empty.jsonl", "also-empty.jsonl")
    for name in ("empty.jsonl", "also-empty.jsonl"):
        (tmp_path / name).write_text("")
    assert source_of(tmp_path).notes == []
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/copy.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes())
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress((tmp_path / "b.jsonl").read_bytes()))
    source = source_of(tmp_path)
    assert source.notes == [
        "read twice: 1 with the size and sampled blocks of another file: sub/copy.jsonl (a.jsonl)",
        "read twice: 1 packed, beside the unpacked file: b.jsonl.gz (b.jsonl)",
    ]
    assert len(source.files) == 6, "a copy may be meant: it is told, not left out"


def test_a_path_with_a_slip_in_it_is_no_dataset_of_a_strangers(tmp_path, monkeypatch):
    """A23: the hub was asked first, and would have been taken at its word."""
    lay(tmp_path / "books", "a.jsonl")
    monkeypatch.chdir(tmp_path)
    assert not is_hub_name("books/b") and not is_hub_name("books/a.jsonl") and is_hub_name("Books/b")
    with pytest.raises(
        InputError, match=r"--dataset books/b: no such file or folder, and .* because there is a folder books"
    ):
        resolve(dataset=("books/b",), config=None, split="train", revision=None)


def test_configs_are_read_however_far_the_header_is_indented(tmp_path):
    """A24: valid YAML, and its configs were passed over."""
    lay(tmp_path, "one.jsonl", "two.jsonl")
    header = (
        "---\n  license: odc-by\n  configs:\n  - config_name: default\n    data_files: two.jsonl\n  tags: [a]\n---\n"
    )
    (tmp_path / "README.md").write_text(header)
    assert names_of(tmp_path) == ["two.jsonl"]


def test_files_of_other_kinds_are_counted_and_a_pipe_is_not_opened(tmp_path):
    """A8: what cannot be read is told in a line by its reason."""
    lay(tmp_path, "a.jsonl", "b.docx", "c.epub", "d.docx")
    os.mkfifo(tmp_path / "e.jsonl")
    lines = left_out_lines(source_of(tmp_path).left_out)
    assert any("skipped: 3 of a format that is not read" in line and "b.docx" in line for line in lines)
    assert any("1 no regular file: e.jsonl" in line for line in lines)


def test_a_folder_that_cannot_be_listed_is_refused_by_its_path(tmp_path, monkeypatch):
    """A8: without permission to list a folder its files would be missing without a word."""
    lay(tmp_path, "a.jsonl", "locked/b.jsonl")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"locked cannot be read \(Permission denied\)"):
        source_of(tmp_path)


def test_papers_are_left_out_and_mixed_kinds_are_told(tmp_path):
    """A9: a licence beside data is no document; two kinds in one folder are told."""
    lay(tmp_path, "a.parquet", "LICENSE.txt", "deep/NOTICE.txt", "requirements.txt", "dataset_info.json")
    source = source_of(tmp_path)
    assert [file.name for file in source.files] == ["a.parquet"]
    assert any("4 about the data" in line for line in left_out_lines(source.left_out))
    assert not source.notes
    lay(tmp_path, "notes.txt")
    assert source_of(tmp_path).notes == ["files of several kinds are read together: 1 parquet, 1 txt"]
    assert names_of(lay(tmp_path / "alone", "LICENSE.txt")) == ["LICENSE.txt"]


def test_what_this_project_writes_is_no_text(tmp_path):
    """B4: converted data, unfinished work, run folders and tokenizers inside of a dataset are left out."""
    lay(tmp_path, "a.jsonl", "mds/meta.json", "mds/conversion.json", "mds/train/index.json", "mds.partial/plan.json")
    lay(tmp_path, "run/run.json", "run/config.yaml", "run/metrics.jsonl", "tok/tokenizer.json")
    lay(tmp_path, "tok/tokenizer_config.json", "new/half.jsonl")
    source = source_of(tmp_path, outputs=(tmp_path / "new",))
    assert [file.name for file in source.files] == ["a.jsonl"]
    assert {"mds/", "mds.partial/", "run/", "tok/", "new/"} <= {one.name for one in source.left_out}
    with pytest.raises(InputError, match=r"the output .* is the same folder"):
        source_of(tmp_path, outputs=(tmp_path,))
    with pytest.raises(InputError, match="is a run folder, not text"):
        source_of(tmp_path / "run")


def test_folders_that_are_named_as_ours_are_text(tmp_path):
    """B4: train and val beside a meta.json are many a dataset's; ours have an index.json in them."""
    lay(tmp_path, "a.jsonl", "set/meta.json", "set/train/b.jsonl", "set/val/c.jsonl")
    lay(tmp_path, "mds/meta.json", "mds/train/index.json", "mds/val/index.json")
    source = source_of(tmp_path)
    assert {"a.jsonl", "set/train/b.jsonl"} <= {file.name for file in source.files}
    assert [one.name for one in source.left_out if one.name.endswith("/")] == ["mds/"]
    assert "train/b.jsonl" in names_of(tmp_path / "set")


def test_two_datasets_with_one_file_name_have_names_that_tell_them_apart(tmp_path):
    """A2: a name is of one file; what lies above both datasets is no part of it."""
    one, two = lay(tmp_path / "x" / "one", "0.jsonl"), lay(tmp_path / "x" / "two", "0.jsonl")
    assert names_of(one, two) == ["one/0.jsonl", "two/0.jsonl"]
    lay(two, "1.jsonl"), lay(tmp_path / "y" / "two", "1.jsonl", "0.jsonl")
    assert names_of(two, tmp_path / "y" / "two")[:2] == ["x/two/0.jsonl", "x/two/1.jsonl"]


def test_names_that_are_not_utf8_and_control_characters_are_written_as_escapes(tmp_path):
    """C5: such names go into JSON and onto terminals."""
    for raw in (b"\xff.jsonl", b"\x1b[31m.jsonl", b"\\xff.jsonl"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + raw)).write_text('{"text": "a"}\n')
    names = names_of(tmp_path)
    assert len(set(names)) == 3
    assert all(name.encode().decode().isprintable() for name in names)


@pytest.mark.parametrize(
    ("header", "names"),
    [
        ("title: a page\nlayout: post", ["a.jsonl", "b.jsonl"]),
        ("configs:", ["a.jsonl", "b.jsonl"]),
        ("configs:\n- config_name: 2024\n  data_files: a.*", ["a.jsonl"]),
        ("configs:\n- config_name: on\n  default: yes\n  data_files: {train: [b.jsonl]}", ["b.jsonl"]),
        ("configs: [a, b]", None),
        ("configs: {a: b}", None),
        ("configs:\n- data_files: a.jsonl", None),
        ("configs:\n- config_name: [a]", None),
        ("configs:\n- config_name: a\n  data_files: [{path: x}]", None),
        ("configs:\n- config_name: a\n  data_files: [[x]]", None),
        ("configs:\n- config_name: a\n  data_dir: {}\n- config_name: a", None),
        ("configs:\n- config_name: 'a\n", None),
        ("configs: &a [*a]", None),
        ("configs:\n\t- b", None),
        ("configs: " + "[" * 30_000, None),
        ("configs:\n" + "- config_name: x\n" * 20_000, None),
        ("configs:\n- config_name: a\n  data_files: " + "*a" * 600, None),
        ("configs: !!python/object/apply:os.system [true]", None),
    ],
)
def test_a_foreign_readme_is_read_refused_or_no_matter(tmp_path, header, names):
    """C1: no header is a traceback; one that means to name files and cannot be read is refused by name."""
    lay(tmp_path, "a.jsonl", "b.jsonl")
    (tmp_path / "README.md").write_text(f"---\n{header}\n---\n")
    if names is None:
        with pytest.raises(InputError, match=r"README\.md"):
            source_of(tmp_path)
    else:
        assert names_of(tmp_path) == names


def test_patterns_take_no_time(tmp_path):
    """C1: a pattern that sends an expression back and forth is matched at once."""
    started = time.monotonic()
    assert not matcher(["*a" * 400 + "b"])("a" * 250)
    assert not matcher(["**/" + "*a*a*a*a*a*b/" * 60 + "c"])("/".join(["a" * 200] * 60))
    assert time.monotonic() - started < 2


def test_paths_by_aliases_are_bounded(tmp_path):
    """C1: 4,000 times a list of 4,000."""
    names = ", ".join(f"f{i}" for i in range(4000))
    header = f"configs:\n- config_name: a\n  other: &p [{names}]\n  data_files:\n"
    header += "  - {split: x, path: *p}\n" * 4000
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "README.md").write_text(f"---\n{header}---\n")
    started = time.monotonic()
    with pytest.raises(InputError, match="names more than 100,000 paths"):
        source_of(tmp_path)
    assert time.monotonic() - started < 5


def test_any_header_is_read_or_refused(tmp_path):
    """C1: a seeded minute's part of the fuzzer (tests/chaos/foreign.py)."""
    drawn = random.Random(3)
    for _ in range(150):
        try:
            read_configs(readme_header(drawn), dataset="d")
        except InputError as error:
            assert "README.md" in str(error)


NAMES = st.sampled_from(["a", "b", ".h", "train-0", "test-1", "night-train", "LICENSE", "ü", "x y"])
ENDS = st.sampled_from([*KINDS, ".docx", ""])
HOW = st.sampled_from("ffflhDLp")  # files, links and hard links; folders by a second name, loops; pipes
TREES = st.lists(
    st.tuples(
        st.lists(st.sampled_from(["d", "e", ".g", "test"]), max_size=2), NAMES, ENDS, st.sampled_from("ffflhDLp")
    ),
    min_size=1,
    max_size=9,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TREES, st.sampled_from(["train", "test"]), st.integers(0, 10**6))
def test_a_tree_is_used_or_left_out_file_by_file(tmp_path, tree, split, number):
    """A7: of random files, links, loops, pipes, kinds and names every one is in once or told."""
    root = tmp_path / str(number) / str(time.monotonic_ns())
    root.mkdir(parents=True)
    real: list[Path] = []
    for folders, name, end, how in tree:
        path = root.joinpath(*folders, name + end)
        path.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(path):
            continue
        if how == "f" or not real:
            path.write_text(f"{len(real)}")
            real.append(path)
        elif how in "DL":  # a folder by a second name, or one that holds the link: a loop
            os.symlink(root if how == "L" else real[number % len(real)].parent, path)
        elif how == "p":
            os.mkfifo(path)
        elif how == "l":
            os.symlink(real[number % len(real)], path)
        else:
            os.link(real[number % len(real)], path)
    try:
        source = source_of(root, split=split)
    except InputError as error:
        assert str(root) in str(error) or "--split" in str(error)
        return
    met = [file.name for file in source.files] + [one.name for one in source.left_out]
    assert len(set(met)) == len(met)
    assert len({os.stat(file.path).st_ino for file in source.files}) == len(source.files)
    hidden = tuple(name for name in met if name.endswith("/"))
    for folder, _, names in os.walk(root):
        for name in names:
            below = Path(folder, name).relative_to(root).as_posix()
            assert below in met or below.startswith(hidden), below
