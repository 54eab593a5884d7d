"""The first hour on a GPU: verifies, measures and tunes what nothing but a GPU can tell.

    make gpu        or: python benchmarks/gpu.py [--stage NAME ...] [--group N] [--out FOLDER] [--dry] [--again]
    python benchmarks/gpu.py --write        the pages in docs/ from the records in benchmarks/results/gpu

- Three groups of stages, each within 8 minutes; each stage is a process of its own that leaves the later ones of its
  group their time (gpu_stages/stages.py), so that a CUDA error, a hang or a lack of memory takes no other stage down.
- One JSON file a stage in --out (gpu_stages/record.py), written as it goes. What is done is not done again; a stage
  that failed or was cut short is, and what it had found is kept until it is done. The last thing on stdout is a short
  table.
- No network and nothing outside this folder: benchmarks/gpu_pack.sh makes the tokenizer and the data before.
- --dry runs every stage on the CPU with tiny shapes and made-up text. Its figures mean nothing and no page takes them.

Exit code 0: every stage asked for is done and no check failed; 1: not so; 2: invalid input.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # where the package is not installed
from gpu_stages.pack import PACK, make_tiny_pack  # noqa: E402
from gpu_stages.page import table, write_pages  # noqa: E402
from gpu_stages.record import (  # noqa: E402
    Record,
    faults,
    is_done,
    new_record,
    read_record,
    read_records,
    write_record,
)
from gpu_stages.run import Run  # noqa: E402
from gpu_stages.stages import GROUP_SECONDS, STAGES, function_of, limit_of  # noqa: E402

from moe.common.errors import InputError  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "gpu"
WORK = ROOT / ".bench" / "gpu"
LEAST_SECONDS = 5  # without which a stage is not begun
TAIL = 60  # lines of a failed stage's output that its record keeps


def machine_of(dry: bool) -> Record:
    """What the records of this machine begin with. torch is not imported: this process must leave the GPU alone.

    Raises:
        InputError: there is no NVIDIA GPU.
    """
    date = str(datetime.datetime.now(datetime.timezone.utc).date())
    found = {"dry": dry, "card": "CPU", "torch": importlib.metadata.version("torch"), "date": date}
    if dry:
        return found
    try:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader", "--id=0"]
        done = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        raise InputError("no NVIDIA GPU answers (nvidia-smi); --dry runs every stage on the CPU") from None
    return {**found, "card": done.stdout.strip()}


def run_stages(names: list[str], machine: Record, args: argparse.Namespace) -> None:
    left = dict.fromkeys({STAGES[name].group for name in names}, float(GROUP_SECONDS))
    todo = []
    for name in names:
        if is_done(read_record(args.out, name), machine) and not args.again:
            print(f"{name}: done before", flush=True)
        else:
            todo.append(name)

    def run_next(name: str) -> None:
        group = STAGES[name].group
        limit = limit_of(name, todo[todo.index(name) + 1 :], left[group])
        if limit < LEAST_SECONDS:
            record = new_record(name, machine, read_record(args.out, name))
            write_record(args.out, {**record, "state": "timed out", "fault": "its group's 8 minutes were over"})
            return
        start = time.monotonic()
        print(f"{name}: at most {limit:.0f} s ...", flush=True)
        _run_stage(name, machine, args, limit)
        left[group] -= time.monotonic() - start

    # one at a time, or they would share what they measure; a dry run measures nothing
    pool = ThreadPoolExecutor(2 if args.dry else 1)
    for _ in pool.map(run_next, todo):
        pass
    pool.shutdown()


def _run_stage(name: str, machine: Record, args: argparse.Namespace, limit: float) -> None:
    """In a process group of its own; the record says how it ended."""
    record = new_record(name, machine, read_record(args.out, name))
    write_record(args.out, record)
    command = [sys.executable, str(Path(__file__).resolve()), "--one", name, "--seconds", str(limit)]
    command += ["--out", str(args.out), "--pack", str(args.pack), *(["--dry"] if args.dry else [])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    if args.dry:
        env |= {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    start = time.monotonic()
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(command, stdout=log, stderr=log, env=env, cwd=ROOT, start_new_session=True)
        try:
            child.wait(limit)
            state, fault = "failed", f"ended with exit code {child.returncode}"
        except subprocess.TimeoutExpired:
            state, fault = "timed out", f"not done after {limit:.0f} s"
        finally:
            _end(child)
        log.seek(0)
        lines = log.read().decode(errors="replace").splitlines()[-TAIL:]
    record = read_record(args.out, name) or record
    if record["state"] == "running":
        record |= {"state": state, "fault": "\n".join([fault, *lines]), "seconds": round(time.monotonic() - start, 1)}
        write_record(args.out, record)
    print(f"{name}: {record['state']}, {record['seconds']:.0f} s", flush=True)


def _end(child: subprocess.Popen) -> None:
    """Ends what is left of a stage: its own children are in its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _end_with(parent: int) -> None:
    """Ends this stage and what it started once the command is gone, however that went: a GPU must not stay busy."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os.killpg(0, signal.SIGKILL)


def run_one(name: str, args: argparse.Namespace) -> int:
    """The inside of `_run_stage`'s process."""
    threading.Thread(target=_end_with, args=[os.getppid()], daemon=True).start()
    record = read_record(args.out, name)
    assert record is not None, "written by the process that started this one"
    work = WORK / name
    work.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + args.seconds
    run = Run(record=record, out=args.out, work=work, pack=args.pack, dry=args.dry, deadline=deadline)
    try:
        function_of(name)(run)
        record |= {"state": "done", "before": None}
    except Exception:
        record |= {"state": "failed", "fault": traceback.format_exc()}
        traceback.print_exc()
    run.save()
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", nargs="+", choices=list(STAGES), metavar="NAME", help=", ".join(STAGES))
    parser.add_argument("--group", type=int, choices=sorted({stage.group for stage in STAGES.values()}))
    parser.add_argument("--out", type=Path, help="folder of the JSON files (default: .bench/gpu/results)")
    parser.add_argument("--pack", type=Path, default=PACK, help="what benchmarks/gpu_pack.sh made")
    parser.add_argument("--dry", action="store_true", help="tiny shapes on the CPU; means nothing but that it runs")
    parser.add_argument("--again", action="store_true", help="also what is done")
    parser.add_argument(
        "--write", action="store_true",
        help=f"write the pages in docs/ from --out (then by default {RESULTS.relative_to(ROOT)}), and run nothing",
    )  # fmt: skip
    parser.add_argument("--one", choices=list(STAGES), help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.out = (args.out or (RESULTS if args.write else WORK / ("dry" if args.dry else "results"))).resolve()
    args.pack = args.pack.resolve()
    if args.one:
        return run_one(args.one, args)
    if args.write:
        write_pages(args.out, ROOT / "docs")
        return 0
    names = args.stage or [name for name, stage in STAGES.items() if args.group in (None, stage.group)]
    machine = machine_of(args.dry)
    if args.dry:
        args.pack = make_tiny_pack(WORK / "pack")
    elif not (args.pack / "data" / "meta.json").is_file():
        raise InputError(f"{args.pack} has no tokenizer and data; benchmarks/gpu_pack.sh makes them, with a network")
    run_stages(names, machine, args)
    found = read_records(args.out, names)
    print(table(found), flush=True)
    good = all(name in found and found[name]["state"] == "done" and not faults(found[name]) for name in names)
    return 0 if good else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        os._exit(130)  # what is done is written; the stages end with this process
