"""A long run of a tiny model, watched: does any process grow, do descriptors? (`make soak`)

    python benchmarks/soak.py --steps 50000 --write     # as a process of its own: --detach

Real text, two loader workers, a checkpoint and an evaluation after each 250th of the steps, a row of metrics a step.
Memory is RssAnon and page tables, taken every few seconds for the trainer and for the largest of its loader workers,
which are new in each epoch; looks while none is at work are left out. The slopes are least squares over all that came
after the first 1,000 steps (a tenth, in shorter runs). Then the run's own logs: `moe watch --once` and `moe report`,
each in a process of its own, beside `moe --help` for what a start costs. Exit code 1 where something grew or was too
slow. `--write` puts the table into docs/performance.md.
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
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.scale import descendants, held_by, small_data  # noqa: E402
from tests.tiny import tiny_config, write_config  # noqa: E402

PAGE = ROOT / "docs" / "performance.md"
SEQ_LEN, BATCH = 64, 8
LEVEL_MB, LEVEL_FILES = 1.0, 0.1  # in 1,000 steps: below it a slope counts as none
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


def train(folder: Path, steps: int, every_s: float) -> tuple[np.ndarray, float]:
    """(samples, wall seconds). A sample is (step, trainer MB, trainer's files, largest worker MB, its files)."""
    often = max(10, steps // 250)
    config = tiny_config(folder, max_seq_len=SEQ_LEN, global_train_batch_size=BATCH, max_duration=f"{steps}ba")
    config |= {"num_workers": 2, "save_interval": f"{often}ba", "eval_interval": f"{often}ba", "log_interval": "1ba"}
    config |= {"train_data": {"local": str(folder / "data")}, "save_num_checkpoints_to_keep": 2}
    config |= {"eval_data": {"local": str(folder / "data"), "split": "val", "max_batches": 2}}
    config |= {"save_folder": str(folder / "run"), "scheduler": {"name": "constant_with_warmup"}}
    command = [sys.executable, "-m", "moe.cli.main", "train", str(write_config(folder / "soak.yaml", config))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    samples, begun = [], time.perf_counter()
    with (
        open(folder / "train.log", "w") as log,
        subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        while process.poll() is None:
            time.sleep(every_s)
            step, workers = last_step(folder / "run" / "metrics.jsonl"), descendants(process.pid)
            largest = max(workers, key=held_by, default=0)
            samples.append(
                (step, held_by(process.pid), descriptors(process.pid), held_by(largest), descriptors(largest))
            )
    if process.returncode:
        sys.exit(f"the run ended with {process.returncode}: {folder / 'train.log'}")
    return np.array(samples, float), time.perf_counter() - begun


def running(samples: np.ndarray, column: int) -> np.ndarray:
    """Samples where the process of this column was at its work: not between two epochs, nor at the end."""
    memory = samples[:, 1 if column < 3 else 3]
    return memory > np.median(memory) / 2


def slope(steps: np.ndarray, values: np.ndarray) -> float:
    """Of `values` in 1,000 steps, by least squares."""
    return float(np.polyfit(steps / 1e3, values, 1)[0])


def seconds(*arguments: str) -> float:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    begun = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "moe.cli.main", *arguments], env=environment, check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - begun


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
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    args = parser.parse_args()
    folder = args.folder.absolute()
    if args.detach:
        return detach(sys.argv[1:], folder)
    for name in ("run", "data", "tokenizer"):
        shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    small_data(folder, SEQ_LEN)
    samples, wall = train(folder, args.steps, args.every)
    settled = samples[samples[:, 0] >= min(1000, args.steps // 10)]
    names = ("trainer, MB", "trainer, open files", "largest loader worker, MB", "its open files")
    lines = ["| | first | last | most | slope in 1,000 steps | level |", "|---|---|---|---|---|---|"]
    fine = True
    for column, name in enumerate(names, 1):
        here, limit = running(settled, column), LEVEL_MB if "MB" in name else LEVEL_FILES
        there, grows = settled[here, column], slope(settled[here, 0], settled[here, column])
        fine &= grows < limit
        lines.append(
            f"| {name} | {there[0]:,.0f} | {there[-1]:,.0f} | {there.max():,.0f} | {grows:+.3f} | "
            f"{'yes' if grows < limit else 'no'} |"
        )
    start = seconds("--help")
    rows = (folder / "run" / "metrics.jsonl").stat().st_size
    for command, limit in ((["watch", "--once"], WATCH_S), (["report"], REPORT_S)):
        took = seconds(command[0], str(folder / "run"), *command[1:])
        fine &= took - start < limit
        lines.append(
            f"| `moe {' '.join(command)}` of {args.steps:,} rows, {rows / 1e6:,.0f} MB | {took:.1f} s, "
            f"{start:.1f} s of them for the start | | | | {'yes' if took - start < limit else 'no'} |"
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
