"""What becomes of --out: two that write it at once, a killed one, a full disk, an output that nobody reads."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from moe.common.errors import InputError
from moe.common.ownership import MARK, finish
from moe.use.export import step_zero, to_hf
from moe.use.export.flags import add_arguments, export_from
from moe.use.export.folders import written_aside
from tests.damage import largest_file

ROOT = Path(__file__).resolve().parents[3]


def run_script(*words: object) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return export_from(parser.parse_args([str(word) for word in words]))


def writing(out: Path, *, overwrite: bool = False):
    return written_aside(out, overwrite=overwrite, kind="export")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_second_writer_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    with writing(tmp_path / "hf") as aside:
        (aside / "weights").write_text("first")
        told = rf"hf\): another export or import is writing there \(pid {os.getpid()} on "
        for overwrite in (False, True):
            with pytest.raises(InputError, match=told), writing(tmp_path / "hf", overwrite=overwrite):
                pass
        assert (aside / "weights").read_text() == "first"
    assert names(tmp_path) == ["hf"] and (tmp_path / "hf" / "weights").read_text() == "first"


KILLED = """
import os, sys
from pathlib import Path
from moe.use.export.folders import written_aside
from moe.common.ownership import MARK, finish
with written_aside(Path(sys.argv[1]), overwrite=True, kind="export") as aside:
    (aside / "half").write_text("x")
    os.kill(os.getpid(), 9)
"""


def test_what_a_killed_writer_left_hinders_nobody(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "hf")], cwd=ROOT)
    assert done.returncode == -9 and ".writing-hf" in names(tmp_path)
    with writing(tmp_path / "hf") as aside:
        assert names(aside) == [MARK]
    assert names(tmp_path) == ["hf"]


def test_a_replacement_that_was_killed_is_finished_or_undone(tmp_path: Path) -> None:
    out, old = tmp_path / "hf", tmp_path / ".replaced-hf"
    for folder in (out, old):
        folder.mkdir()
        (folder / "config.json").write_text(folder.name)
        finish(folder, "export")
    with writing(out, overwrite=True) as aside:  # killed after the new one had its name
        (aside / "config.json").write_text("again")
    assert names(tmp_path) == ["hf"] and (out / "config.json").read_text() == "again"
    out.rename(old)  # killed before
    with pytest.raises(InputError, match="is there already"), writing(out):
        pass
    assert names(tmp_path) == ["hf"] and (out / "config.json").read_text() == "again"


def test_a_disk_that_fills_at_the_tokenizer_is_one_message(
    make_run: Callable, tmp_path: Path, monkeypatch, capsys
) -> None:
    plain, raised = to_hf.write_tokenizer, []

    def full(*args) -> None:
        with largest_file(2000):
            try:
                plain(*args)
            except Exception as error:
                raised.append((type(error), type(error.__context__)))
                raise

    monkeypatch.setattr(to_hf, "write_tokenizer", full)
    assert run_script(make_run(), "--out", tmp_path / "hf") == 2
    error = capsys.readouterr().err
    assert raised == [(OSError, Exception)], "save_files makes an OSError of what the tokenizer's Rust raises"
    assert error.startswith(f"error: --out ({tmp_path / 'hf'}): File too large") and "nothing was kept" in error
    assert error.count("\n") == 1 and names(tmp_path) == ["run"]


@pytest.mark.parametrize("limit", [1000, 50_000])
def test_a_disk_that_fills_at_the_weights_is_one_message(make_run: Callable, tmp_path: Path, capsys, limit) -> None:
    run = make_run()
    with largest_file(limit):
        assert run_script(run, "--out", tmp_path / "hf") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --out ({tmp_path / 'hf'}): File too large") and error.count("\n") == 1
    assert names(tmp_path) == ["run"]


def test_a_disk_that_fills_in_an_import_is_one_message(make_run: Callable, tmp_path: Path, monkeypatch, capsys) -> None:
    assert run_script(make_run(), "--out", tmp_path / "hf") == 0
    for name in ("write_rows", "write_state"):
        plain = getattr(step_zero, name)

        def full(*args, plain=plain):
            with largest_file(100):
                return plain(*args)

        monkeypatch.setattr(step_zero, name, full)
        assert run_script("--from-hf", tmp_path / "hf", "--out", tmp_path / "back") == 2
        monkeypatch.undo()
        error = capsys.readouterr().err
        assert error.startswith(f"error: --out ({tmp_path / 'back'}): File too large") and error.count("\n") == 1
        assert names(tmp_path) == ["hf", "run"]


def can_mount() -> bool:
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/mnt"]
    return shutil.which("unshare") is not None and not subprocess.run(command, capture_output=True).returncode


@pytest.mark.skipif(not can_mount(), reason="may not mount a small disk")
def test_an_import_on_a_disk_that_is_full_is_not_killed(make_run: Callable, tmp_path: Path) -> None:
    assert run_script(make_run(), "--out", tmp_path / "hf") == 0
    (tmp_path / "disk").mkdir()
    script = (
        'mount -t tmpfs -o size=64k tmpfs "$1/disk" || exit 9\n'
        '"$2" convert/checkpoint_to_hf.py --from-hf "$1/hf" --out "$1/disk/back"; code=$?\n'
        'ls -A "$1/disk"; exit $code'
    )
    command = ["unshare", "-rm", "sh", "-c", script, "sh", str(tmp_path), sys.executable]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and done.stdout == "", done.stderr
    assert f"error: --out ({tmp_path}/disk/back): No space left on device (" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_output_that_nobody_reads_ends_neither_export_nor_import(
    make_run: Callable, tmp_path: Path, monkeypatch, capsys
) -> None:
    run = make_run()
    for words in ((run, "--out", tmp_path / "hf"), ("--from-hf", tmp_path / "hf", "--out", tmp_path / "back")):
        end, pipe = os.pipe()
        os.close(end)
        closed = os.fdopen(pipe, "w")
        monkeypatch.setattr("sys.stdout", closed)
        assert run_script(*words) == 0
        sys.stdout.flush()  # as Python does at its end
        with pytest.raises(BrokenPipeError):
            closed.close()
        monkeypatch.undo()
        assert capsys.readouterr().err == ""
    assert names(tmp_path) == ["back", "hf", "run"]


def test_a_users_folder_of_the_name_of_ours_stays_where_it_is(tmp_path: Path) -> None:
    """It was renamed to --out before its mark was asked for."""
    old = tmp_path / ".replaced-hf"
    old.mkdir()
    (old / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="replaced-hf holds something else"), writing(tmp_path / "hf"):
        pass
    assert names(tmp_path) == [".replaced-hf"] and names(old) == ["mine.txt"]
