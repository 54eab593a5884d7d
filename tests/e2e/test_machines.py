"""Two machines of one rank each, in namespaces of this host: what one does where the other ends."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.machines import Machines, machines, missing
from tests.tiny import tiny_config, write_config

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif((why := missing()) is not None, reason=why or "")


def wait_for(text: str, log: Path, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while text not in log.read_text():
        assert time.monotonic() < end, f"no {text!r}:\n{log.read_text()}"
        time.sleep(0.05)


def test_a_machine_that_is_killed_ends_the_other_with_75_and_its_name(tiny: Path, tmp_path: Path) -> None:
    """A lonely rank waited half an hour, deaf for SIGTERM; "stopped by SIGTERM" where a peer had died."""
    settings = {"max_duration": "100000ba", "save_interval": "5ba", "eval_data": None, "scheduler": {"t_warmup": "1ba"}}
    config = write_config(tmp_path / "c.yaml", tiny_config(tiny, save_folder=str(tmp_path / "run"), **settings))
    logs = [tmp_path / f"{node}.log" for node in range(2)]
    with machines(tmp_path / "machines", 2) as two:
        started = []

        def start(node: int) -> None:
            meeting = ["--nodes", "2", "--node-rank", str(node), "--master-addr", two.address(0)]
            line = [sys.executable, "-m", "moe.cli.main", "launch", "-n", "1", *meeting, "--master-port", "29500"]
            env = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            started.append(two.start(node, [*line, str(config), "start_timeout=60s"], logs[node], **env))

        try:
            start(0)
            start(1)
            wait_for("step 12/", logs[0])
            Machines.kill(started[1])
            assert started[0].wait(60) == 75, logs[0].read_text()
        finally:
            for process in started:
                Machines.kill(process)
    said = logs[0].read_text()
    assert "stopped by the end of node1 (rank 1); step 10 is saved in" in said, said
    assert json.loads((tmp_path / "run/run.json").read_text())["state"] == "stopped"
