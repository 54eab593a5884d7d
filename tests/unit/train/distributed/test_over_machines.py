"""What ranks and machines must share, and must not: the run folder, numbers of shared memory, the end."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed

from moe.common.errors import InputError
from moe.train.distributed import ranks, same_folder
from tests.ranks import on_ranks
from tests.unit.train.savers import idle_saver

ROOT = Path(__file__).resolve().parents[4]


def _be(rank: int, *, machines: int) -> None:
    """This process is the only rank of machine `rank`, as far as `same_folder` asks."""
    for module in (same_folder, ranks):
        module.RANK, module.LOCAL_RANK, module.MACHINES = rank, 0, machines  # type: ignore[attr-defined]
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


def test_a_folder_that_another_machine_does_not_see_is_refused_and_nothing_stays(tmp_path: Path, monkeypatch) -> None:
    """It trained and saved, and could not resume: ./ck is another folder on each machine."""
    monkeypatch.setattr(same_folder, "SEEN_AFTER", 0.3)
    for node in range(2):
        (tmp_path / str(node)).mkdir()

    def local(rank: int) -> None:
        _be(rank, machines=2)
        os.chdir(tmp_path / str(rank))
        with pytest.raises(InputError, match=r"save_folder \(./ck/run\) is not one folder for all machines: .* s3://"):
            same_folder.check_same_folder(Path("./ck/run"), "./ck/run")

    on_ranks(2, local)
    assert [list(path.iterdir()) for path in tmp_path.iterdir()] == [[], []]


def test_a_folder_that_both_see_passes_whether_it_is_there_yet_or_not(tmp_path: Path) -> None:
    def shared(rank: int) -> None:
        _be(rank, machines=2)
        same_folder.check_same_folder(tmp_path / "runs/new", "runs/new")
        same_folder.check_same_folder(tmp_path, "there")
        os.chdir(tmp_path if rank else "/")
        same_folder.check_same_folder(Path("elsewhere"), "s3://bucket/run")  # each machine has its own then
        _be(rank, machines=1)
        same_folder.check_same_folder(Path("elsewhere"), "./elsewhere")

    on_ranks(2, shared)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_takes_the_number_in_between_is_stepped_aside_for(tmp_path: Path, monkeypatch) -> None:
    """Rank 1 ended with "shared memory registered does not match local leader", rank 0 waited for it."""
    from streaming.base.constant import LOCALS
    from streaming.base.shared import SharedMemory, _get_path
    from streaming.base.shared import prefix as stock
    from streaming.base.world import World

    from moe.data.read.shared_prefix import agreed_prefix

    number, plain, looks = 900_000 + os.getpid() % 90_000, stock._check_and_find_retrying, [0]
    other = SharedMemory(_get_path(number, LOCALS), True, 64)  # the other run's
    other.buf[:4] = b"\x40\0\0\0"

    def find(*args: Any) -> int:
        looks[0] += 1
        return number if looks[0] <= 3 else number + 1  # at first it was free a moment ago

    monkeypatch.setattr(stock, "_check_and_find_retrying", find)
    assert plain is not find

    def both(rank: int) -> None:
        world = World(num_nodes=1, ranks_per_node=2, workers_per_rank=1, worker=rank)
        got, memory = agreed_prefix([str(tmp_path)], [None], world)
        assert got == number + 1 and str(tmp_path).encode() in bytes(memory.buf)
        torch.distributed.barrier()
        if rank == 0:
            memory.cleanup()

    try:
        on_ranks(2, both)
    finally:
        other.cleanup()


def test_a_folder_in_use_is_an_error_on_every_rank(tmp_path: Path, monkeypatch) -> None:
    from streaming.base.shared import prefix as stock
    from streaming.base.world import World

    from moe.data.read.shared_prefix import agreed_prefix

    def find(*args: Any) -> int:
        raise ValueError("Reused local directory: x vs y")

    monkeypatch.setattr(stock, "_check_and_find_retrying", find)

    def both(rank: int) -> None:
        with pytest.raises(ValueError, match="Reused local directory"):
            agreed_prefix([str(tmp_path)], ["s3://x"], World(1, 2, 1, rank))

    on_ranks(2, both)


@pytest.mark.parametrize("fails", [False, True])
def test_no_rank_ends_before_the_save_of_rank_0_is_complete(tmp_path: Path, fails: bool) -> None:
    """A launcher kills the others 30 s after the first that ends: a save that takes 45 s was cut short."""
    from moe.train.callbacks.saver import SaveError
    from moe.train.stop import Stopped

    def stops(rank: int) -> None:
        saver = idle_saver(tmp_path)

        def join() -> None:
            if rank == 0:
                time.sleep(1.0)
                (tmp_path / "saved").touch()
                if fails:
                    raise SaveError("a full disk")

        saver.save = lambda state, logger: None  # type: ignore[method-assign]
        saver.join = join  # type: ignore[method-assign]
        with pytest.raises(SaveError if fails and rank == 0 else Stopped):
            saver.stop_here(SimpleNamespace(), SimpleNamespace())  # type: ignore[arg-type]
        assert (tmp_path / "saved").exists()

    on_ranks(2, stops)


def test_a_stop_tells_which_rank_was_asked_and_by_what(monkeypatch) -> None:
    """It said "a lost process or another rank"."""
    from moe.train.distributed.meeting import Member
    from moe.train.distributed.peers import Peers
    from moe.train.stop import StopSignal

    def asked(rank: int) -> None:
        members = [Member(r, 0, 1, 2, f"node{r}", "", f"m{r}", os.getpid(), f"t{r}") for r in range(2)]
        stop = StopSignal()
        stop.peers = Peers(members, rank)
        if rank == 1:
            stop.received = signal.SIGTERM
        assert stop.agreed("cpu")
        assert stop.reason == ("SIGTERM" if rank else "SIGTERM on rank 1 on node1")

    on_ranks(2, asked)


@pytest.mark.parametrize("microbatches", [8, 1])
def test_a_long_step_is_abandoned_by_all_ranks_at_the_same_microbatch(monkeypatch, microbatches: int) -> None:
    """The rank that had the signal left alone; the others waited for it in the gradients' all-reduce until they were
    killed, and nothing was saved. One of a single microbatch is finished.
    """
    import torch
    from composer.utils import dist

    from moe.train import stop as module
    from moe.train.callbacks.saver import CheckpointSaver
    from moe.train.stop import Stopped, StopSignal

    monkeypatch.setattr(module, "ASKS", 0.05, raising=False)

    def run(rank: int) -> None:
        stop, place = StopSignal(), []

        def stop_here(*_: object) -> None:
            dist.all_reduce(torch.zeros(1))  # as the save's barrier
            raise Stopped

        saver = SimpleNamespace(stop=stop, stop_here=stop_here)
        state = SimpleNamespace(fsdp_enabled=False, device=SimpleNamespace(_device="cpu"))
        with pytest.raises(Stopped):
            for step in range(4):
                for microbatch in range(microbatches):
                    place = [step, microbatch]
                    if rank == 1 and step == 2 and microbatch == microbatches // 2:
                        stop.received, stop.waited = signal.SIGTERM, 1e9
                    CheckpointSaver.before_forward(saver, state, None)  # type: ignore[arg-type]
                    time.sleep(0.02 * (1 + rank))
                dist.all_reduce(torch.zeros(1))  # the gradients
                if stop.agreed("cpu"):
                    stop_here()
        assert (
            place[0] == 2 and place[1] == (0 if microbatches == 1 else place[1]) and stop._asked == (1, signal.SIGTERM)
        )
        both = dist.all_gather_object(place)
        assert both[0] == both[1] and (microbatches == 1 or microbatches // 2 <= place[1] < microbatches - 1)

    on_ranks(2, run)


def test_moe_launch_waits_as_long_as_stop_grace_says(tmp_path: Path, tiny: Path) -> None:
    from moe.cli import launch
    from moe.config import load_config
    from tests.tiny import tiny_config, write_config

    path = str(write_config(tmp_path / "c.yaml", tiny_config(tiny)))
    assert launch.patience(load_config(path, [])) == 30.0, "as Composer's launcher"
    assert launch.patience(load_config(path, ["stop_grace=2m"])) == 125.0
    parser = argparse.ArgumentParser()
    launch.add_arguments(parser)

    def line(*words: str) -> list[str]:
        return launch.arguments(parser.parse_intermixed_args([*words, path, "seed=3"]))

    assert line("-n", "2") == ["-n", "2", "-m", "moe.cli.main", "train", path, "seed=3"]
    two = ["-n", "4", "--nodes", "2", "--node-rank", "1", "--master-addr", "a", "--master-port", "9"]
    assert "--world_size 8 --node_rank 1 --master_addr a --master_port 9" in " ".join(line(*two))
    with pytest.raises(InputError, match=r"--nodes \(2\) needs -n, --master-addr and --master-port"):
        line("-n", "4", "--nodes", "2")
    for flag, value in (("--node-rank", "1"), ("--master-addr", "a"), ("--master-port", "9")):
        with pytest.raises(InputError, match=rf"^{flag} \({value}\) is for several machines; give --nodes"):
            line("-n", "8", flag, value)  # each machine trained a run of its own
    with pytest.raises(InputError, match=r"--node-rank \(7\) must be 0 to 0 with --nodes 1"):
        line("-n", "8", "--nodes", "1", "--node-rank", "7")
    one = line("-n", "4", "--nodes", "1", "--node-rank", "0", "--master-addr", "a", "--master-port", "9")
    assert one[:6] == ["-n", "4", "--master_addr", "a", "--master_port", "9"]
    for flag in ("-n", "--nodes"):
        with pytest.raises(InputError, match=rf"^{flag} \(0\) must be at least 1$"):
            line(flag, "0")
    with pytest.raises(InputError, match=r"--node-rank \(2\) must be 0 to 1"):
        line(*two, "--node-rank", "2")


SAVES = """
import pathlib, signal, sys, time

def save(number, frame):
    time.sleep(3)
    pathlib.Path(sys.argv[1]).touch()
    sys.exit(75)

signal.signal(signal.SIGTERM, save)
pathlib.Path(sys.argv[1] + "-ready").touch()
time.sleep(60)
"""


def test_moe_launch_lets_a_save_end_that_its_launcher_would_have_cut_short(
    tmp_path: Path, tiny: Path, monkeypatch
) -> None:
    """Composer's launcher itself, as if it killed after one second; and a scheduler that sends SIGTERM twice."""
    from composer.cli import launcher

    from moe.cli import launch
    from moe.train import run
    from tests.tiny import tiny_config, write_config

    codes: list[int] = []
    saved, script = tmp_path / "saved", tmp_path / "saves.py"
    script.write_text(SAVES)
    monkeypatch.setattr(launcher, "CLEANUP_TIMEOUT", launcher.datetime.timedelta(seconds=1))
    monkeypatch.setattr(launch, "arguments", lambda args: ["-n", "1", str(script), str(saved)])
    monkeypatch.setattr(run, "end", codes.append)
    path = str(write_config(tmp_path / "c.yaml", tiny_config(tiny)))
    parser = argparse.ArgumentParser()
    launch.add_arguments(parser)

    def terminate_twice() -> None:
        while not saved.with_name("saved-ready").exists():
            time.sleep(0.05)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)

    threading.Thread(target=terminate_twice).start()
    launch.run(parser.parse_args([path, "stop_grace=10s"]))
    assert codes == [75] and saved.exists()


def test_moe_launch_hears_sigterm_before_there_are_ranks(tmp_path: Path, tiny: Path) -> None:
    """As process 1 of a container, which no signal ends that has no handler: `docker stop` waited, then killed."""
    from tests.tiny import tiny_config, write_config

    (tmp_path / "composer").mkdir()
    slow = f"import pathlib, time\npathlib.Path({str(tmp_path)!r}, 'imported').touch()\ntime.sleep(60)\n"
    (tmp_path / "composer/__init__.py").write_text(slow)
    path = str(write_config(tmp_path / "c.yaml", tiny_config(tiny)))
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    process = subprocess.Popen([sys.executable, "-m", "moe.cli.main", "launch", path], env=env, cwd=ROOT)
    while not (tmp_path / "imported").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.terminate()
    assert process.wait(20) == 75


def test_a_machine_that_does_not_come_ends_the_start_with_75(tmp_path: Path, tiny: Path, monkeypatch, capsys) -> None:
    from moe.cli import train
    from moe.train import run
    from moe.train.distributed import joining
    from tests.tiny import tiny_config, write_config

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    for name, value in {**place, "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    for module in (train, run, joining):
        monkeypatch.setattr(module, "WORLD_SIZE", 2)
    path = str(write_config(tmp_path / "c.yaml", tiny_config(tiny)))
    assert train.main([path, f"save_folder={tmp_path / 'run'}", "start_timeout=1s"]) == 75
    told = capsys.readouterr()
    assert "not started: 1 of 2 ranks are here, missing: node 1, after 0m01s (start_timeout)" in told.out
    assert "nothing has changed; run the same command again" in told.out and not (tmp_path / "run").exists()
