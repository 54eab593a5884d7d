"""Every line reaches the console, whatever is in it and whoever reads; nothing prints past moe.common.units."""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from moe.common import units
from moe.common.units import short

ROOT = Path(__file__).resolve().parents[3]
ODD = "caf\xe9 \u4e2d \udcff \x1b]0;title\x07 \u202e end"


def run(code: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **env}, capture_output=True)


def test_nothing_prints_past_the_console() -> None:
    """C13: what is printed in another way is stopped by a character that the console's encoding does not have."""
    found = []
    for path in [*(ROOT / "moe").rglob("*.py"), *(ROOT / "convert").glob("*.py"), ROOT / "train.py"]:
        if path in (ROOT / "moe/common/units.py", ROOT / "moe/common/parser.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = isinstance(node, ast.Name) and node.id == "print"
            write = isinstance(node, ast.Attribute) and node.attr == "write" and "sys.std" in ast.unparse(node.value)
            parser = isinstance(node, ast.Call) and ast.unparse(node.func).endswith("ArgumentParser")
            if name or write or parser:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not found


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_character_is_written_in_any_encoding(encoding: str, monkeypatch) -> None:
    """C13: escapes for what the encoding lacks, `?` for what a terminal would obey, on stdout and stderr."""
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    for speak in (units.show, units.tell, units.say, units.note, units.complain, units.redraw):
        speak(ODD)
    for stream in streams.values():
        text = stream.buffer.getvalue().decode(encoding)
        assert text.count("end") == 3 and "\x07" not in text and "]0;title?" in text and "\u202e" not in text
        assert text.count("\x1b") == (1 if stream is streams["stderr"] else 0), "that of the line drawn over"
        assert ("caf\xe9" in text) == (encoding != "ascii") and ("\\u4e2d" in text) == (encoding != "utf-8")


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "moe.cli.main", "runs", "x"],
        ["-m", "moe.cli.main", "inspect", "x"],
        ["convert/fineweb_to_mds.py"],
        ["convert/train_tokenizer.py"],
        ["convert/checkpoint_to_hf.py", "x", "--out", "y"],
    ],
    ids=lambda command: "-".join(command[-2:]).replace("/", "-"),
)
def test_words_of_the_command_line_that_nobody_knows_are_shown_harmlessly(command: list[str]) -> None:
    """C13: argparse wrote `unrecognized arguments` with the bytes as they were."""
    word = b"--foo\x1b]0;evil\x07\xff\xe2\x80\xae"
    done = subprocess.run([sys.executable, *command, word], cwd=ROOT, capture_output=True)
    assert done.returncode == 2 and b"foo?]0;evil?" in done.stderr
    assert not any(bad in done.stderr + done.stdout for bad in (b"\x1b", b"\x07", b"\xff", b"\xe2\x80\xae"))


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_help_and_usage_go_where_they_went(stream: str, capsys: pytest.CaptureFixture) -> None:
    """C13: help to stdout, an error to stderr; and to nobody, where there is none."""
    from moe.common.parser import Parser

    parser = Parser(prog="x")
    with pytest.raises(SystemExit) as end:
        parser.parse_args(["--help"] if stream == "stdout" else ["--nope"])
    out, err = capsys.readouterr()
    told, other = (out, err) if stream == "stdout" else (err, out)
    assert end.value.code == (0 if stream == "stdout" else 2)
    assert told.startswith("usage: x [-h]") and not other


def test_a_library_that_prints_is_not_stopped_either() -> None:
    """C13: lm-eval's tables and rich's frames go to stdout by themselves."""
    done = run("from moe.common.units import ready; ready(); print('\u2191 \u4e2d')", PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and done.stdout == b"\\u2191 \\u4e2d\n"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_has_gone_stops_nothing(stream: str, tmp_path: Path) -> None:
    """C14: `| head -1` ends the lines, not the work; no traceback, no complaint at exit, exit code of the work."""
    speak = {"stdout": "units.tell", "stderr": "units.note"}[stream]
    code = (
        "import pathlib, sys; from moe.common import units\n"
        f"for i in range(20000): {speak}(f'line {{i}}')\n"
        f"pathlib.Path({str(tmp_path / 'done')!r}).touch()"
    )
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: write}
    )
    os.close(write)
    assert os.read(read, 6) == b"line 0"
    os.close(read)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and not out and not err and (tmp_path / "done").exists()


def test_a_result_on_a_full_disk_is_an_error() -> None:
    """C14: a reader that has gone is one thing, a result that is lost another."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    code = "import sys; from moe.cli.main import main; sys.exit(main(['runs', 'nowhere', '--json']))"
    assert run(code).returncode == 2
    code = "from moe.common import units; units.tell('a'); units.note('b'); units.tell('c')"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=full, stderr=subprocess.PIPE)
        assert done.returncode == 0 and done.stderr == b"b\n"
        code = code.replace("tell", "show")
        assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=full, stderr=full).returncode == 1


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_console_that_was_closed_before_the_start(closed: str) -> None:
    """C14: `>&-` gives Python no stream at all."""
    number = {"stdout": 1, "stderr": 2}[closed]
    code = "from moe.common.units import *; ready(); show('a'); note('b'); flush()"
    command = f'exec {number}>&-; exec {sys.executable} -c "{code}"'
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True)
    assert done.returncode == 0 and (done.stdout, done.stderr) == ((b"", b"b\n") if number == 1 else (b"a\n", b""))


def test_names_are_shown_with_escapes_that_keep_them_apart() -> None:
    """C5: bytes that are no UTF-8, lone surrogates, control characters and those that turn the line around."""
    from moe.common.units import printable

    texts = ["a\udcffb", "a\udcfeb", "a\ud800b", "a\x1b[2Jb", "a\u202eb", "a\nb", "a\tb", "a\x85b", "aüb 你 😀"]
    shown = [printable(text) for text in texts]
    assert shown[:3] == ["a\\xffb", "a\\xfeb", "a\\ud800b"] and shown[-1] == texts[-1]
    assert len(set(shown)) == len(texts) and all(text.encode().decode().isprintable() for text in shown)


def test_a_count_is_rounded_before_its_unit_is_chosen() -> None:
    assert [short(count) for count in (999_400_000, 999_700_000, 1_234_567, 999.9, 12)] == [
        "999M",
        "1B",
        "1.23M",
        "1k",
        "12",
    ]
