"""The conversion scripts as a user runs them: in a process of their own, killed and stopped."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from moe.data import load_tokenizer
from moe.data.text.encoders import HARD, build_encoder, first_difference
from moe.data.text.plain_ids import encode_plain, plain_json
from tests.chaos.convert_kills import done_units, kill, start
from tests.unit.data.conftest import (
    expected_split,
    folder_bytes,
    make_texts,
    read_rows,
    tokenizer_folder,
    write_parquet,
)

__all__ = ["tokenizer_folder"]  # a fixture


def run(*flags: object, script: str = "fineweb_to_mds.py") -> subprocess.CompletedProcess:
    process = start(*flags, script=script)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def wait_for_units(process: subprocess.Popen, partial: Path, count: int) -> None:
    while process.poll() is None and done_units(partial) < count:
        time.sleep(0.002)


@pytest.fixture(scope="module")
def many_files(tmp_path_factory):
    """24 units of real work each, so that a kill falls inside."""
    folder = tmp_path_factory.mktemp("many") / "text"
    for i in range(24):
        write_parquet(folder / f"{i:02}.parquet", make_texts(1500, seed=i))
    return folder


def test_killed_three_times_then_finished_gives_the_bytes_of_an_uninterrupted_run(
    tmp_path, many_files, tokenizer_folder
):
    flags = ["--dataset", many_files, "--tokenizer", tokenizer_folder, "--seq-len", 64, "--encoder", "transformers"]
    whole = run(*flags, "--out", tmp_path / "whole", "--workers", 1)
    assert whole.returncode == 0, whole.stderr
    kills = 0
    for goal in (2, 9, 17):
        process = start(*flags, "--out", tmp_path / "out", "--workers", 2)
        wait_for_units(process, tmp_path / "out.partial", goal)
        time.sleep(random.random() * 0.02)
        kills += kill(process)  # and its workers notice
    assert kills == 3
    assert not (tmp_path / "out").exists()
    last = run(*flags, "--out", tmp_path / "out", "--workers", 1)
    assert last.returncode == 0, last.stderr
    assert "resuming: " in last.stdout
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "whole")
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_stopped_run_says_how_to_go_on(tmp_path, many_files, tokenizer_folder, number, code):
    flags = ["--dataset", many_files, "--tokenizer", tokenizer_folder, "--seq-len", 64, "--encoder", "transformers"]
    process = start(*flags, "--out", tmp_path / "out", "--workers", 2)
    wait_for_units(process, tmp_path / "out.partial", 3)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "the same command resumes" in err and "Traceback" not in err
    assert not (tmp_path / "out").exists()


def worker_of(process: subprocess.Popen, number: int) -> int:
    """The pid of the worker that started as the `number`th, as soon as it is there."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None:
        pids = [
            pid for pid in children.read_text().split() if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        if len(pids) >= number:
            return int(pids[number - 1])
        time.sleep(0.002)
    raise RuntimeError(f"the conversion ended before worker {number} was there: {process.communicate()}")


@pytest.mark.parametrize(("number", "done"), [(1, 0), (2, 0), (1, 3)])
def test_a_worker_killed_as_it_starts_or_works_ends_the_run_at_once_and_the_same_command_goes_on(
    tmp_path, many_files, shared_data, number, done
):
    """With GPT-2's tokenizer, whose 3 MB no pipe holds."""
    flags = ["--dataset", many_files, "--tokenizer", shared_data / "gpt2", "--seq-len", 64, "--encoder", "transformers"]
    flags += ["--out", tmp_path / "out", "--workers", 2]
    process = start(*flags)
    worker = worker_of(process, number)
    wait_for_units(process, tmp_path / "out.partial", done)
    os.kill(worker, signal.SIGKILL)
    try:
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 2, err
    assert [line for line in err.splitlines() if "error" in line] == [
        "error: a worker process died, most often for lack of memory; what is done is kept: "
        "run the same command with fewer --workers"
    ]
    assert "Traceback" not in err
    again = run(*flags)
    assert again.returncode == 0, again.stderr
    assert ("resuming: " in again.stdout) == bool(done)


def test_the_last_worker_killed_as_it_starts_is_noticed_while_the_first_has_still_work(tmp_path, tokenizer_folder):
    """As many units as workers: nothing else comes that the pool would look up for."""
    for i in range(2):
        write_parquet(tmp_path / "text" / f"{i}.parquet", make_texts(30000, seed=i))
    flags = ["--dataset", tmp_path / "text", "--tokenizer", tokenizer_folder, "--seq-len", 64]
    process = start(*flags, "--encoder", "transformers", "--out", tmp_path / "out", "--workers", 2)
    os.kill(worker_of(process, 2), signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2 and "a worker process died" in err
    assert done_units(tmp_path / "out.partial") == 0


def test_bad_input_gives_one_message_code_2_and_no_traceback(tmp_path, tokenizer_folder):
    text = write_parquet(tmp_path / "text" / "a.parquet", make_texts(20)).parent
    without_eos = tmp_path / "no-eos"
    without_eos.mkdir()
    (without_eos / "tokenizer.json").write_bytes((tokenizer_folder / "tokenizer.json").read_bytes())
    (without_eos / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (tmp_path / "empty").mkdir()
    good = {"--dataset": text, "--tokenizer": tokenizer_folder, "--seq-len": 32, "--out": tmp_path / "out"}
    cases = [
        ({"--tokenizer": without_eos}, "has no EOS token"),
        ({"--tokenizer": tmp_path / "nowhere"}, "cannot be loaded"),
        ({"--text-column": "body"}, "no column 'body'; there are text, id"),
        ({"--dataset": tmp_path / "empty"}, "no file that can be read (parquet, jsonl"),
    ]
    for change, message in cases:
        result = run(*(item for pair in {**good, **change}.items() for item in pair))
        assert result.returncode == 2, result.stderr
        assert message in result.stderr and "Traceback" not in result.stderr
        assert result.stderr.count("error: ") == 1
        assert not list(tmp_path.glob("out*"))


def test_hub_layout_of_real_text_converts_to_transformers_ids(tmp_path, shared_data):
    """Every block of the shards, built again document by document with transformers' tokenizer."""
    flags = ["--dataset", shared_data / "fineweb", "--config", "sample-10BT", "--tokenizer", shared_data / "gpt2"]
    result = run(*flags, "--seq-len", 512, "--out", tmp_path / "out", "--val-fraction", 0.01)
    assert result.returncode == 0, result.stderr
    files = sorted((shared_data / "fineweb" / "sample" / "10BT").glob("*.parquet"))
    tables = [pq.read_table(path, columns=["text", "id"]) for path in files]
    units = [(i << 44, table["text"].to_pylist(), table["id"].to_pylist()) for i, table in enumerate(tables)]
    tokenizer = load_tokenizer(str(shared_data / "gpt2"))
    expected = expected_split(tokenizer, units, seq_len=512, threshold=int(0.01 * 2**64), seed=17)
    for split in ("train", "val"):
        assert (read_rows(tmp_path / "out" / split) == expected[split]).all()
    assert len(expected["train"]) > 5000 and len(expected["val"]) > 10


@pytest.mark.parametrize("name", ["gigatoken", "fastokens"])
def test_fast_encoder_gives_transformers_ids_on_real_text(shared_data, name):
    pytest.importorskip(name)
    tokenizer = load_tokenizer(str(shared_data / "gpt2"))
    texts = pq.read_table(shared_data / "fineweb" / "sample" / "10BT" / "000_00000.parquet")["text"].to_pylist()
    encoder = build_encoder(name, spec_json=plain_json(tokenizer), tokenizer_name="")
    assert first_difference(encoder, [*HARD, *texts], encode_plain(tokenizer, [*HARD, *texts])) is None


def test_trained_tokenizer_loads_everywhere_and_converts(tmp_path):
    write_parquet(tmp_path / "text" / "a.parquet", make_texts(200))
    flags = ["--dataset", tmp_path / "text", "--vocab-size", 300, "--out", tmp_path / "bpe"]
    result = run(*flags, script="train_tokenizer.py")
    assert result.returncode == 0, result.stderr
    tokenizer = load_tokenizer(str(tmp_path / "bpe"))
    assert tokenizer.eos_token == "<|endoftext|>" and len(tokenizer) == 300
    refused = run(*flags, script="train_tokenizer.py")
    assert refused.returncode == 2 and "not empty" in refused.stderr
    converted = run(
        *("--dataset", tmp_path / "text", "--tokenizer", tmp_path / "bpe", "--seq-len", 32, "--out", tmp_path / "out")
    )
    assert converted.returncode == 0, converted.stderr
    assert json.loads((tmp_path / "out" / "meta.json").read_text())["vocab_size"] == 300


def test_every_flag_has_a_default():
    result = run("--help")
    assert result.returncode == 0
    assert "sample-10BT" in result.stdout and "openai-community/gpt2" in result.stdout
    assert "data/fineweb-10bt" in result.stdout.replace(os.sep, "/")
