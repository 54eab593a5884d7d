"""The flags: what --help says, which values are refused, and how a script ends."""

import argparse
import errno
import resource
import signal
from types import SimpleNamespace

import pytest

from moe.common.errors import InputError
from moe.data.write import items
from moe.data.write.convert import convert
from moe.data.write.flags import add_convert_arguments, add_tokenizer_arguments, exit_code
from tests.unit.data.conftest import make_texts, write_parquet


@pytest.mark.parametrize("add", [add_convert_arguments, add_tokenizer_arguments])
def test_help_says_each_default_in_words(add):
    parser = argparse.ArgumentParser()
    add(parser)
    text = " ".join(parser.format_help().split())
    assert "None" not in text and "(default: HuggingFaceFW/fineweb)" in text
    for action in parser._actions:
        assert action.nargs == 0 or "(default: " in (action.help or ""), action.dest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq_len": 1}, "--seq-len 1"),
        ({"seq_len": 1 << 26}, "--seq-len 67108864"),
        ({"val_fraction": 1.0}, "--val-fraction 1.0"),
        ({"workers": 0}, "--workers 0"),
        ({"max_documents": 0}, "--max-documents 0"),
        ({"shard_index": 3, "num_shards": 3}, "--shard-index 3 --num-shards 3"),
        ({"shard_index": 1}, "--shard-index 1 --num-shards None"),
        ({"revision": "main"}, "--revision main"),
    ],
)
def test_values_out_of_range_are_named(tmp_path, make_request, changes, message):
    write_parquet(tmp_path / "text" / "a.parquet", make_texts(60))
    with pytest.raises(InputError, match=message):
        convert(make_request(**changes))
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("named", [True, False], ids=["named", "a write, which names no file"])
def test_full_disk_is_told_with_the_path_and_what_is_free_and_code_2(tmp_path, capsys, monkeypatch, named):
    monkeypatch.setattr(
        "moe.data.text.tokenizer.spare_torch", lambda: None
    )  # this process may need transformers' models

    def fail():
        raise OSError(errno.ENOSPC, "No space left on device", *([str(out)] if named else []))

    out = tmp_path / "not" / "there" / "out"
    usage = SimpleNamespace(free=12_345)
    monkeypatch.setattr(
        "moe.data.write.flags.shutil", SimpleNamespace(disk_usage=lambda path: usage if path == tmp_path else 1 / 0)
    )

    handler = signal.getsignal(signal.SIGTERM)
    try:
        assert exit_code(fail, out) == 2
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert f"error: {out}: No space left on device (12,345 bytes free); fix that" in capsys.readouterr().err


@pytest.fixture
def at_most_20_000_bytes():
    """No file of this process may grow further: as on a full disk, a write ends in its middle."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_an_array_that_does_not_fit_is_told_as_any_file(
    tmp_path, make_request, capsys, monkeypatch, at_most_20_000_bytes
):
    """numpy's error (30000 requested and 7152 written) has no number: a traceback, exit code 1."""
    monkeypatch.setattr("moe.data.text.tokenizer.spare_torch", lambda: None)
    monkeypatch.setattr(items, "MANY", 1)
    for number in range(2):
        write_parquet(tmp_path / "text" / f"{number}.parquet", ["a"] * 1500, ids=list(range(1500)))
    handler = signal.getsignal(signal.SIGTERM)
    try:
        assert exit_code(lambda: convert(make_request()), tmp_path / "out") == 2
    finally:
        signal.signal(signal.SIGTERM, handler)
    told = capsys.readouterr().err
    assert "out: File too large (" in told and "fix that and run the same command: it resumes" in told
