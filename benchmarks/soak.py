"""A long run of a tiny model, watched: does any process grow, do descriptors? (`make soak`)

    python benchmarks/soak.py --steps 50000 --write     # as a process of its own: --detach

Real text, two loader workers, a checkpoint and an evaluation after each 250th of the steps, a row of metrics a step.
Memory is RssAnon and page tables, taken every few seconds for each process: the trainer, its loader workers, which are
new in each epoch, and whatever else it has started. The slopes are of all that came after the first 1,000 steps (a
tenth, in shorter runs); benchmarks/growth.py says what counts as level. Then the run's own logs: `moe watch --once` and
`moe report`, each in a process of its own, beside `moe --help` for what a start costs. Exit code 1 where something is
not shown to be level, or was too slow. `--write` puts the table into docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.growth import LEAST, LEVEL, Series, growth, warm  # noqa: E402
from benchmarks.logs import cost  # noqa: E402
from benchmarks.scale import descendants, held_by, small_data  # noqa: E402
from tests.tiny import tiny_config, write_config  # noqa: E402

PAGE = ROOT / "docs" / "performance.md"
SEQ_LEN, BATCH = 64, 8
TRAINER, WORKER = "trainer", "loader worker"
MEMORY, FILES = "MB", "open files"
LIMITS = {MEMORY: 0.1, FILES: 0.02}  # in 1,000 steps: 5 MB and one file in 50,000
WATCH_S, REPORT_S = 1.0, 10.0  # beyond what a start costs


def descriptors(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def last_step(metrics: Path) -> int:
    """Of the newest complete row; 0 for none."""
    try:
        with open(metrics, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - (64 << 10)))
            rows = file.read().split(b"\n")[:-1]
    except OSError:
        return 0
    return json.loads(rows[-1])["step"] if rows else 0


class Look(NamedTuple):
    """At one process: the run's step, what it held, how many files it had open."""

    step: int
    pid: int
    kind: str
    mb: float
    files: int


def look(step: int, pid: int, kind: str) -> Look:
    return Look(step, pid, kind, held_by(pid)[0], descriptors(pid))


def train(folder: Path, steps: int, every_s: float) -> tuple[list[Look], float]:
    """(looks, wall seconds)."""
    often = max(10, steps // 250)
    config = tiny_config(folder, max_seq_len=SEQ_LEN, global_train_batch_size=BATCH, max_duration=f"{steps}ba")
    config |= {"num_workers": 2, "save_interval": f"{often}ba", "eval_interval": f"{often}ba", "log_interval": "1ba"}
    config |= {"train_data": {"local": str(folder / "data")}, "save_num_checkpoints_to_keep": 2}
    config |= {"eval_data": {"local": str(folder / "data"), "split": "val", "max_batches": 2}}
    config |= {"save_folder": str(folder / "run"), "scheduler": {"name": "constant_with_warmup"}}
    command = [sys.executable, "-m", "moe.cli.main", "train", str(write_config(folder / "soak.yaml", config))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    looks: list[Look] = []
    begun = time.perf_counter()
    with (
        open(folder / "train.log", "w") as log,
        subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        while process.poll() is None:
            time.sleep(every_s)
            step = last_step(folder / "run" / "metrics.jsonl")
            for pid in (process.pid, *descendants(process.pid)):
                kind = TRAINER if pid == process.pid else kind_of(pid)
                looks.append(look(step, pid, kind))
    if process.returncode:
        sys.exit(f"the run ended with {process.returncode}: {folder / 'train.log'}")
    return looks, time.perf_counter() - begun


def kind_of(pid: int) -> str:
    """What a process calls itself: loader workers do, others have their program's name."""
    try:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
    return WORKER if name == "pt_data_worker" else name


def table(looks: Sequence[Look], settled: int) -> tuple[list[str], bool]:
    """Lines of the table, and whether all is level. settled: the step from which on looks count.

    Processes that were there for a few looks alone have no line; a run without one of its trainer or of its loader
    workers is not level.
    """
    of_pid: dict[int, list[Look]] = {}
    for look in looks:
        if look.mb:  # one that has just ended holds nothing
            of_pid.setdefault(look.pid, []).append(look)
    kinds: dict[str, list[list[Look]]] = {}
    for one in of_pid.values():
        kinds.setdefault(one[-1].kind, []).append(one)  # a process has its name only once it is at work
    during = range(settled, max((look.step for look in looks), default=0))  # at the last step the run takes itself down
    lines, fine, shown = [], True, set()
    for kind, processes in kinds.items():
        for what, limit in LIMITS.items():
            series = series_of(processes, what, during)
            if not series:
                continue
            shown.add(kind)
            found = growth(series, limit)
            fine &= found.level(limit) == LEVEL
            several = f", {found.processes} processes" if found.processes > 1 else ""
            more = [str(found.steepest), str(found.successive)] if found.processes > 1 else ["", ""]
            cells = [f"{value:,.1f}" for value in (found.first, found.last, found.most)]
            cells += [str(found.together), *more, found.level(limit)]
            lines.append(f"| {kind}{several}, {what} | {' | '.join(cells)} |")
    return lines, fine and {TRAINER, WORKER} <= shown


def series_of(processes: Sequence[Sequence[Look]], what: str, during: range) -> list[Series]:
    """Of those that were looked at often enough; where some were born after the run had settled, of these: what a
    process is forked from is smaller at the start.
    """
    known: dict[bool, list[Series]] = {True: [], False: []}  # born after
    for looks in processes:
        kept = [look for look in looks if look.step in during]
        values = [look.mb if what == MEMORY else look.files for look in kept]
        series = warm((np.array([look.step for look in kept], float), np.array(values, float)))
        if len(series[0]) >= LEAST:
            known[looks[0].step in during].append(series)
    return known[True] or known[False]


def quickest(arguments: list[str]) -> tuple[float, float]:
    """(wall seconds, CPU seconds) of the quickest of three: others may use the machine."""
    return min(cost(ROOT, arguments)[:2] for _ in range(3))


def detach(arguments: list[str], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "soak.log"
    with open(log, "w") as out:
        own = [argument for argument in arguments if argument != "--detach"]
        process = subprocess.Popen(
            [sys.executable, __file__, *own], stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    print(f"process {process.pid} runs on its own; its result: {log}, the run: {folder / 'run'} (moe watch)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--folder", type=Path, default=ROOT / ".bench" / "soak", help="is emptied first")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two looks at the processes")
    parser.add_argument("--detach", action="store_true", help="as a process of its own, which outlives this one")
    parser.add_argument("--again", action="store_true", help="the table of the last run, which is not made again")
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    args = parser.parse_args()
    folder = args.folder.absolute()
    if args.detach:
        return detach(sys.argv[1:], folder)
    kept = folder / "looks.json"
    if not args.again:
        for name in ("run", "data", "tokenizer"):
            shutil.rmtree(folder / name, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        small_data(folder, SEQ_LEN)
        kept.write_text(json.dumps(train(folder, args.steps, args.every)))
    rows, wall = json.loads(kept.read_text())
    looks = [Look(*row) for row in rows]
    head = "| | first | last | most | slope in 1,000 steps | the steepest of them | from one to the next | level |"
    lines, fine = table(looks, min(1000, args.steps // 10))
    lines = [head, "|---" * 8 + "|", *lines]
    run = folder / "run"
    size = (run / "metrics.jsonl").stat().st_size / 1e6
    start = quickest(["--help"])[0]
    for command, limit in ((["watch", str(run), "--once"], WATCH_S), (["report", str(run)], REPORT_S)):
        wall_s, cpu_s = quickest(command)
        fine &= wall_s - start < limit
        lines.append(
            f"| `moe {command[0]}` of {args.steps:,} rows, {size:,.0f} MB | {wall_s:.1f} s, {start:.1f} s of them for "
            f"the start; {cpu_s:.1f} s of CPU | | | | | | {'yes' if wall_s - start < limit else 'no'} |"
        )
    machine = (
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, load average {os.getloadavg()[0]:.1f} at the end"
    )
    head = f"`python benchmarks/soak.py --steps {args.steps}` on {machine}, {wall / 60:,.0f} minutes:"
    text = "\n".join([head, "", *lines])
    print(text, flush=True)
    if args.write:
        page = PAGE.read_text(encoding="utf-8")
        found = re.subn(r"(<!-- soak -->\n).*?(<!-- /soak -->)", lambda m: f"{m[1]}{text}\n{m[2]}", page, flags=re.S)
        assert found[1] == 1, f"{PAGE} has no place for the table"
        PAGE.write_text(found[0], encoding="utf-8")
    sys.exit(not fine)


if __name__ == "__main__":
    main()
