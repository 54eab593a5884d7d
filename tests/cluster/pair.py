"""One run on two machines: its launchers, what they say, how they end."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.cluster.machines import Machines

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 300.0  # seconds for one thing to happen, on a busy machine


class Pair:
    """One start of a run on both machines, one launcher each."""

    def __init__(self, cluster: Cluster, name: str, *settings: str, cwds: list[Path] | None = None, **env: str) -> None:
        self.cluster, self.name = cluster, name
        self.port = str(20_000 + len(list(cluster.folder.glob("*.log"))))
        self.logs = [cluster.folder / f"{name}.{node}.log" for node in range(2)]
        for log in self.logs:
            log.write_text("")
        self.processes = []
        for node in range(2):
            line = [sys.executable, "-m", "moe.cli.main", "launch", "-n", cluster.ranks, "--nodes", "2"]
            line += ["--node-rank", str(node), "--master-addr", cluster.two.address(0), "--master-port", self.port]
            self.processes.append(
                cluster.two.start(
                    node,
                    [*line, str(cluster.config), *settings],
                    self.logs[node],
                    cwd=cwds[node] if cwds else None,
                    **{"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **env},
                )
            )

    def said(self, node: int = 0) -> str:
        return self.logs[node].read_text(errors="replace")

    def until(self, text: str, node: int = 0) -> None:
        until(lambda: text in self.said(node) or self.processes[node].poll() is not None, f"{self.name}: {text}")
        assert text in self.said(node), self.said(node)[-3000:]

    def end(self) -> tuple[list[int], float]:
        """Both exit codes, and the seconds until the second came."""
        begun = time.monotonic()
        until(lambda: all(process.poll() is not None for process in self.processes), f"{self.name}: the end")
        return [process.returncode for process in self.processes], time.monotonic() - begun

    def line(self, begin: str, node: int = 0) -> str:
        found = [line for line in self.said(node).splitlines() if begin in line]
        assert found, f"{begin!r} is not in:\n{self.said(node)[-3000:]}"
        return found[-1].replace(str(self.cluster.folder), "...").strip()[:200]


class Cluster:
    def __init__(self, folder: Path, two: Machines) -> None:
        self.folder, self.two, self.ranks = folder, two, "1"
        self.config = folder / "c.yaml"


def until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > end:
            raise AssertionError(f"not in {PATIENCE:.0f} s: {what}")
        time.sleep(0.1)


def each_step_once(folder: Path) -> int:
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1)), f"{folder}: steps are missing or twice"
    return len(steps)
