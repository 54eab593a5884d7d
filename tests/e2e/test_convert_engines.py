"""Conversion beyond one machine: under Ray, in shards of separate processes, and to a bucket; killed and resumed."""

import os
import signal
import socket
import sys
import time
import uuid
from pathlib import Path

import pytest

from moe.common.errors import InputError
from moe.data.write import pool
from moe.data.write.run_units import engine_function
from tests.chaos.convert_kills import done_units, start
from tests.e2e.test_convert import many_files, run, tokenizer_folder, wait_for_units
from tests.unit.data.conftest import folder_bytes

__all__ = ["many_files", "tokenizer_folder"]  # fixtures


@pytest.fixture(scope="module")
def flags(many_files, tokenizer_folder):
    return ["--dataset", many_files, "--tokenizer", tokenizer_folder, "--seq-len", 64, "--encoder", "transformers"]


@pytest.fixture(scope="module")
def local(tmp_path_factory, flags):
    """The bytes of an uninterrupted conversion by local processes."""
    out = tmp_path_factory.mktemp("local") / "whole"
    whole = run(*flags, "--out", out, "--workers", 2)
    assert whole.returncode == 0, whole.stderr
    return folder_bytes(out)


def processes_with(marker: str) -> list[str]:
    """Names of the living processes whose environment holds `marker`, but for Ray's two agents, which write nothing
    and end within a minute.
    """
    found = []
    for environ in (Path("/proc", name, "environ") for name in os.listdir("/proc") if name.isdigit()):
        try:
            if marker.encode() in environ.read_bytes():
                found.append(environ.with_name("comm").read_text().strip())
        except OSError:
            continue
    return [name for name in found if not name.startswith(("ray::Dashboard", "ray::RuntimeEnv"))]


def test_ray_killed_and_stopped_by_a_bad_file_gives_the_bytes_of_local_processes(
    tmp_path, flags, local, many_files, monkeypatch
):
    pytest.importorskip("ray")
    marker = uuid.uuid4().hex
    monkeypatch.setenv("MOE_TEST_MARKER", marker)
    ray = [*flags, "--out", tmp_path / "out", "--engine", "ray", "--workers", 2]
    process = start(*ray)
    wait_for_units(process, tmp_path / "out.partial", 4)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    deadline = time.monotonic() + 30
    while (left := processes_with(marker)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []  # Ray's daemons and workers end with the process that started them
    done = done_units(tmp_path / "out.partial")
    assert 4 <= done < 24
    last = many_files / "23.parquet"
    whole, times = last.read_bytes(), last.stat()
    try:
        last.write_bytes(whole[:-300])
        stopped = run(*ray)
    finally:
        last.write_bytes(whole)
        os.utime(last, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert stopped.returncode == 2, stopped.stderr
    assert "23.parquet" in stopped.stderr and "Traceback" not in stopped.stderr
    assert f"resuming: {done} of 23 units are done" in stopped.stdout
    assert done_units(tmp_path / "out.partial") == 23
    finished = run(*flags, "--out", tmp_path / "out")
    assert finished.returncode == 0, finished.stderr
    assert folder_bytes(tmp_path / "out") == local


def test_missing_ray_names_the_command_that_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"--engine ray: .*; pip install .*ray"):
        engine_function("ray")(None, [], None, workers=1, counter=pool.new_counter(), finished=lambda *_: True)


def test_cluster_that_does_not_answer_is_told(monkeypatch):
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InputError, match=f"RAY_ADDRESS {address} cannot be reached"):
        engine_function("ray")(None, [], None, workers=1, counter=pool.new_counter(), finished=lambda *_: True)


def test_three_shards_in_processes_of_their_own_and_a_merge_give_the_bytes_of_one_run(tmp_path, flags, local):
    shards = [
        start(*flags, "--out", tmp_path / "out", "--workers", 1, "--shard-index", i, "--num-shards", 3)
        for i in range(3)
    ]
    for process in shards:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    merged = run(*flags, "--out", tmp_path / "out", "--merge-only")
    assert merged.returncode == 0, merged.stderr
    assert folder_bytes(tmp_path / "out") == local


def test_bucket_conversion_killed_on_one_machine_is_finished_on_another(tmp_path, flags, local, monkeypatch):
    pytest.importorskip("moto.server")
    from tests.unit.data.bucket import KEY, SECRET, BucketServer

    server = BucketServer()
    try:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        server.client().create_bucket(Bucket="corpus")
        for machine in ("a", "b"):
            (tmp_path / machine).mkdir()
        monkeypatch.setenv("TMPDIR", str(tmp_path / "a"))
        process = start(*flags, "--out", "s3://corpus/set", "--workers", 2)
        marks = lambda: sum(name.endswith("/done.json") for name in server.names("corpus", "set.partial"))  # noqa: E731
        while process.poll() is None and marks() < 5:
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        out, err = process.communicate()
        done = marks()
        assert 5 <= done < 24 and "set/meta.json" not in server.names("corpus", "")
        monkeypatch.setenv("TMPDIR", str(tmp_path / "b"))
        finished = run(*flags, "--out", "s3://corpus/set", "--workers", 1)
        assert finished.returncode == 0, finished.stderr
        assert "resuming: " in finished.stdout
        assert server.dataset("corpus", "set") == local
        assert server.names("corpus", "set.partial") == [] and not list((tmp_path / "b").iterdir())
        missing = run(*flags, "--out", "s3://nowhere/set")
        assert missing.returncode == 2 and "no such bucket" in missing.stderr and "Traceback" not in missing.stderr
        said = out + err + finished.stdout + finished.stderr + missing.stderr
        assert SECRET not in said and KEY not in said
    finally:
        server.close()
