"""A place that cannot be written is one message before the work, whatever stands in its way."""

import errno
import os
import signal
from pathlib import Path

import pytest

from moe.common.errors import InputError
from moe.data.text import train_tokenizer as training
from moe.data.text.train_tokenizer import train_tokenizer
from moe.data.write.convert import convert
from moe.data.write.flags import exit_code
from tests.unit.data.conftest import make_texts, write_parquet


@pytest.fixture
def text(tmp_path: Path) -> Path:
    write_parquet(tmp_path / "text/a.parquet", make_texts(60))
    return tmp_path / "text"


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    """Places for a result, each with a file in its way."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "to-file").symlink_to(tmp_path / "file")
    (tmp_path / "behind.partial").write_text("mine")
    return {"below": tmp_path / "file/a/b", "linked": tmp_path / "to-file/out", "behind": tmp_path / "behind"}


@pytest.mark.parametrize("case", ["below", "linked", "behind"])
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_conversion_tries_its_place_first(text, tmp_path, make_request, places, monkeypatch, case, dry_run):
    """C26: NotADirectoryError and FileExistsError as tracebacks, after all had been planned."""
    monkeypatch.setattr("moe.data.write.plan.resolve", lambda **request: pytest.fail("the text was looked at"))
    with pytest.raises(InputError, match=r"--out .*(file|behind\.partial).* (folder|is a file)"):
        convert(make_request(out=places[case], dry_run=dry_run))
    assert (tmp_path / "file").read_text() == (tmp_path / "behind.partial").read_text() == "mine"


@pytest.mark.parametrize("case", ["below", "linked"])
def test_a_tokenizer_tries_its_place_before_it_is_trained(text, tmp_path, places, monkeypatch, case):
    """C26: FileExistsError as a traceback after the training; so too a folder that may not be written."""
    monkeypatch.setattr(training, "resolve", lambda **request: pytest.fail("the text was looked at"))
    arguments = {"dataset": str(text), "out": places[case], "vocab_size": 300}
    with pytest.raises(InputError, match=r"--out .* cannot be written .*file is not a folder"):
        train_tokenizer(**arguments)

    def refuses(**where: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", where["dir"])

    monkeypatch.setattr("moe.common.paths.tempfile.TemporaryFile", refuses)
    with pytest.raises(InputError, match=rf"--out .*new.* cannot be written \({tmp_path}: Permission denied\)"):
        train_tokenizer(**{**arguments, "out": tmp_path / "new/deeper"})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"max_bytes": -5}, "--max-bytes -5: must be at least 1"),
        ({"max_bytes": 0}, "--max-bytes 0"),
        ({"vocab_size": 10**11}, "--vocab-size 100000000000: .* and at most 16,777,216"),
        ({"vocab_size": 10**30}, "--vocab-size 1000"),
    ],
)
def test_numbers_of_a_tokenizer_that_cannot_be_are_named(text, tmp_path, changes, told):
    """C26: --max-bytes -5 read one batch, exit code 0; a vocabulary of 10^30 was an OverflowError as a traceback."""
    with pytest.raises(InputError, match=told):
        train_tokenizer(**{"dataset": str(text), "out": tmp_path / "out", "vocab_size": 300, **changes})


@pytest.mark.parametrize(
    ("number", "name", "is_told"),
    [
        (errno.ENOTDIR, "out/deeper/x", True),
        (errno.EEXIST, "out.partial", True),
        (errno.ELOOP, "", True),  # a folder above it
        (errno.EBUSY, "out.partial/units/x", True),
        (errno.EIO, "elsewhere", True),
        (errno.ESTALE, None, True),
        (errno.ENOENT, "elsewhere", False),  # an error of ours keeps its traceback
        (errno.ENOTDIR, "output", False),
        (errno.ECONNRESET, None, False),
    ],
)
def test_what_the_system_says_of_the_place_is_one_message(tmp_path, monkeypatch, capsys, number, name, is_told):
    """C26: four errors of a disk were a message, all others a traceback."""
    monkeypatch.setattr("moe.data.text.tokenizer.spare_torch", lambda: None)  # this process may need its models

    def fail() -> None:
        raise OSError(number, os.strerror(number), *([str(tmp_path / name)] if name is not None else []))

    handler = signal.getsignal(signal.SIGTERM)
    try:
        if not is_told:
            with pytest.raises(OSError, match=os.strerror(number)):
                exit_code(fail, str(tmp_path / "out"))
            return
        assert exit_code(fail, str(tmp_path / "out")) == 2
    finally:
        signal.signal(signal.SIGTERM, handler)
    told = capsys.readouterr().err
    assert told.count("error: ") == 1 and os.strerror(number) in told and told.count("\n") == 1
