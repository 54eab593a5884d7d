"""Memory of a worker: bounded, whatever the documents and however many."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moe.data.text.files import SourceFile
from moe.data.text.planning import UNIT_BYTES, file_units
from tests.unit.data.conftest import WORDS, tokenizer_folder

__all__ = ["tokenizer_folder"]  # a fixture

SCRIPT = """
import argparse, json, sys, threading, time
from pathlib import Path
from moe.data.write.flags import add_convert_arguments, convert_from

def peak(process):  # ru_maxrss would begin with what the process that started it held
    try:
        if process != "self" and "spawn_main" not in Path(f"/proc/{process}/cmdline").read_text():
            return 0  # no worker, or not yet: until it is, the memory is its parent's
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return max((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM")), default=0)

def watch(peaks):
    while True:
        for process in Path(f"/proc/self/task/{main}/children").read_text().split():
            peaks["worker"] = max(peaks["worker"], peak(process))
        time.sleep(0.01)

if __name__ == "__main__":
    main, peaks = threading.get_native_id(), {"worker": 0}
    threading.Thread(target=watch, args=(peaks,), daemon=True).start()
    parser = argparse.ArgumentParser()
    add_convert_arguments(parser)
    code = convert_from(parser.parse_args())
    print(json.dumps({"parent": peak("self"), **peaks}), file=sys.stderr)
    sys.exit(code)
"""


def long_text(size: int, seed: int) -> str:
    words = np.random.default_rng(seed).choice([*WORDS, "mixture", "expert", "router", "1234", "naïve"], size // 5)
    return " ".join(words)[:size]


def write_text(path: Path, texts: list[str], times: int) -> list[int]:
    """The texts so many times, a row group each time. Returns the text's bytes in each unit of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"text": texts, "id": [str(i) for i in range(len(texts))]})
    with pq.ParquetWriter(path, table.schema, use_dictionary=False) as writer:
        for _ in range(times):
            writer.write_table(table)
    file = SourceFile(path.name, str(path), "parquet", path.stat().st_size, "")
    return [unit.weight for unit in file_units(0, file, "text")]


def peaks(folder: Path, tokenizer: Path, encoder: str, workers: int) -> dict[str, int]:
    """MB of the largest worker, and of the process that started it, in a whole conversion."""
    script = folder.parent / "run.py"
    script.write_text(SCRIPT)
    flags = ["--dataset", folder, "--tokenizer", tokenizer, "--encoder", encoder, "--workers", workers]
    command = [sys.executable, script, *flags, "--out", f"{folder}-{workers}"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    assert f"encoder {encoder}\n" in done.stdout
    print(encoder, workers, done.stderr.splitlines()[-1])
    return json.loads(done.stderr.splitlines()[-1])


@pytest.mark.parametrize("encoder", ["gigatoken", "fastokens"])
def test_worker_stays_below_400_mb_with_2_mb_documents_units_of_full_size_and_ten_times_the_input(
    tmp_path, tokenizer_folder, encoder
):
    pytest.importorskip(encoder)
    texts = [long_text(2_000_000, seed) for seed in range(5)]
    for i in range(2):
        write_text(tmp_path / "small" / f"{i}.parquet", texts, times=3)
        units = write_text(tmp_path / "large" / f"{i}.parquet", texts, times=30)
        assert units[0] >= UNIT_BYTES and len(units) == 2
    small = peaks(tmp_path / "small", tokenizer_folder, encoder, 2)
    large = peaks(tmp_path / "large", tokenizer_folder, encoder, 2)
    assert 0 < large["worker"] <= 400 and large["worker"] - small["worker"] <= 60
    assert large["parent"] <= 400 and large["parent"] - small["parent"] <= 30, "the check and the merge"


@pytest.mark.parametrize("encoder", ["gigatoken", "fastokens"])
def test_a_conversion_in_one_process_stays_below_400_mb(tmp_path, tokenizer_folder, encoder):
    """Here what checked the encoder is in the same process."""
    pytest.importorskip(encoder)
    units = write_text(tmp_path / "text" / "a.parquet", [long_text(2000, seed) for seed in range(3000)], times=50)
    assert units[0] >= UNIT_BYTES
    found = peaks(tmp_path / "text", tokenizer_folder, encoder, 1)
    assert found["worker"] == 0 and found["parent"] <= 400


def test_worker_of_transformers_encoder_stays_below_300_mb(tmp_path, tokenizer_folder):
    texts = [long_text(2_000_000, seed) for seed in range(2)]
    for i in range(2):
        write_text(tmp_path / "text" / f"{i}.parquet", texts, times=1)
    found = peaks(tmp_path / "text", tokenizer_folder, "transformers", 2)
    assert 0 < found["worker"] <= 300
