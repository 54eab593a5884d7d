"""A library that ends the process while it reads a file: the file is named, by whichever process it is."""

import signal
import subprocess
import sys

import pytest

from tests.unit.data.conftest import make_texts, write_parquet

# stands in for pyarrow, which does this at some footers: in C, without Python's lock
CONVERT = """
import ctypes, os, sys
import pyarrow.parquet as pq
from moe.cli.main import main
from moe.common.units import say
real = pq.ParquetFile
def opened(raw, *rest, **more):
    ends = raw.name.endswith(sys.argv[1]) if hasattr(raw, "name") else False
    if ends:
        exec(sys.argv[2])
    return real(raw, *rest, **more)
pq.ParquetFile = opened
sys.exit(main(sys.argv[3:]))
"""
WAYS = {
    "os.abort()": signal.SIGABRT,
    "ctypes.CDLL(None).abort()": signal.SIGABRT,
    "ctypes.string_at(1)": signal.SIGSEGV,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_footer_that_ends_the_process_that_plans_is_named(tmp_path, tokenizer_folder, way):
    for i, name in enumerate("abc"):
        write_parquet(tmp_path / "text" / f"{name}.parquet", make_texts(20, seed=i))
    command = ["convert", "--dataset", str(tmp_path / "text"), "--tokenizer", str(tokenizer_folder)]
    command += ["--out", str(tmp_path / "out"), "--seq-len", "32", "--workers", "2"]
    done = subprocess.run(
        [sys.executable, "-c", CONVERT, "b.parquet", way, *command], capture_output=True, text=True, timeout=60
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(errors) == 1, done.stderr
    assert f"{WAYS[way].name} while it read b.parquet" in errors[0] and "remove it" in errors[0]


@pytest.mark.parametrize("way", [*WAYS, "os.kill(os.getpid(), 6)"])
def test_a_crash_elsewhere_is_as_it_was(tmp_path, way):
    code = f"""
import ctypes, os
from moe.data.text.crashes import reading
with reading("a.parquet"):
    pass
{way}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == -WAYS.get(way, signal.SIGABRT) and not done.stderr
