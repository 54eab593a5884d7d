"""The proof that a conversion survives anything: kill -9 many times, then let it finish.

    make chaos-convert        or: python tests/chaos/convert_kills.py --kills 20

Every kill hits the parent process; its workers must end by themselves. The moments are drawn by --seed and follow the
run's own progress, however fast the machine is: of 20, 3 while it starts, 13 between and inside units, 4 in the merge.
A kill that comes too late is repeated. At the end the bytes are compared with those of an undisturbed run; exit code 1
if they differ.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
UNITS = 240


def start(*flags: object, script: str = "fineweb_to_mds.py") -> subprocess.Popen:
    """A conversion script in a session of its own."""
    command = [sys.executable, str(ROOT / "convert" / script), *map(str, flags)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def done_units(partial: Path) -> int:
    return len([path for path in partial.glob("units/*") if not path.name.startswith(".")])


def session_is_empty(session: int) -> bool:
    """Whether no process of the session is left."""
    for name in filter(str.isdigit, os.listdir("/proc")):  # a glob looks at each again, and raises where one has ended
        try:
            fields = Path("/proc", name, "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            return False
    return True


def kill(process: subprocess.Popen) -> bool:
    """kill -9; whether it came before the end. Returns when no worker is left, RuntimeError if one stays."""
    process.kill()
    process.communicate()
    for _ in range(500):
        if session_is_empty(process.pid):
            return process.returncode == -9
        time.sleep(0.02)
    raise RuntimeError(f"a worker of process {process.pid} is still there 10 s after its parent was killed")


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file but conversion.json, which holds the seconds."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "conversion.json")
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def state(out: Path, units: int) -> str:
    partial = out.with_name(out.name + ".partial")
    if out.exists():
        return "the result was there, its work not yet removed"
    done = f"{done_units(partial)} of {units} units done"
    return f"{done}, in the merge" if (partial / "merged").exists() else done


def wait_for(process: subprocess.Popen, reached: Callable[[], bool]) -> float:
    """Until `reached()`, or the process ends. Returns the moment."""
    while process.poll() is None and not reached():
        time.sleep(0.001)
    return time.monotonic()


def finished(process: subprocess.Popen) -> None:
    out, err = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"exit code {process.returncode}\n{out}\n{err}")


@dataclass
class Undisturbed:
    """Seconds of a run that nobody disturbs, and the digests of what it made."""

    start: float  # until the first unit
    unit: float
    merge: float
    digests: dict[str, str]

    @staticmethod
    def run(flags: Sequence[object], out: Path, units: int) -> Undisturbed:
        partial = out.with_name(out.name + ".partial")
        process, began = start(*flags, "--out", out, "--workers", 2), time.monotonic()
        first = wait_for(process, lambda: done_units(partial) > 0)
        merge = wait_for(process, (partial / "merged").exists)
        end = wait_for(process, out.exists)
        finished(process)
        found = digests(out)
        size = sum((out / name).stat().st_size for name in found)
        print(f"undisturbed: {end - began:.1f} s, the merge {end - merge:.2f} s of these; {size:,} bytes", flush=True)
        return Undisturbed(first - began, (merge - first) / units, end - merge, found)


def moments(kills: int, units: int) -> list[str | int]:
    """Where the kills come: `start`, a number of finished units, or `merge`."""
    merges, starts = max(1, kills // 5), kills // 6
    inside: list[str | int] = [*sorted(random.sample(range(1, units * 9 // 10), kills - merges - starts))]
    for _ in range(starts):
        inside.insert(random.randrange(len(inside)), "start")
    return [*inside, *["merge"] * merges]


def strike(process: subprocess.Popen, moment: str | int, partial: Path, usual: Undisturbed) -> bool:
    """Kill at the moment; whether it came before the end."""
    if moment == "start":
        time.sleep(random.uniform(0, usual.start))
    elif moment == "merge":
        wait_for(process, (partial / "merged").exists)
        time.sleep(random.uniform(0, usual.merge))
    else:
        wait_for(process, lambda: done_units(partial) >= int(moment))
        time.sleep(random.uniform(0, 2 * usual.unit))
    return kill(process)


def chaos(flags: Sequence[object], folder: Path, *, kills: int, seed: int, units: int) -> bool:
    """Whether `kills` killed runs and a last one give the bytes of an undisturbed one. Prints a line a kill."""
    random.seed(seed)
    began = time.monotonic()
    usual = Undisturbed.run(flags, folder / "whole", units)
    out, partial, saved = folder / "out", folder / "out.partial", folder / "saved"
    same, late = True, 0
    for number, moment in enumerate(moments(kills, units), 1):
        if moment == "merge" and not saved.exists():
            shutil.copytree(partial, saved)
        landed = False
        while not landed:
            if out.exists():  # nothing is left to kill: resume from before the merges
                same = same and digests(out) == usual.digests
                shutil.rmtree(out)
                shutil.rmtree(partial, ignore_errors=True)
                shutil.copytree(saved, partial)
            if moment == "merge":  # the one that the last kill began says nothing of this run
                shutil.rmtree(partial / "merged", ignore_errors=True)
            workers = random.choice((1, 2, 5))
            process = start(*flags, "--out", out, "--workers", workers)
            landed = strike(process, moment, partial, usual)
            late += not landed
        print(f"kill {number:>2} ({workers} workers): {state(out, units)}", flush=True)
    if out.exists() and same:
        same = digests(out) == usual.digests
    last = time.monotonic()
    finished(start(*flags, "--out", out, "--workers", 2))
    end = time.monotonic()
    same = same and digests(out) == usual.digests and not partial.exists()
    print(
        f"last run: {end - last:.1f} s; {kills} kills landed, {late} came too late and were repeated; "
        f"{end - began:.0f} s in total; bytes {'as undisturbed' if same else 'DIFFER'}",
        flush=True,
    )
    return same


def main() -> int:
    from tests.unit.data.conftest import make_texts, write_parquet

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-convert-") as name:
        folder = Path(name)
        for i in range(UNITS):
            write_parquet(folder / "text" / f"{i:03}.parquet", make_texts(200, seed=i))
        from moe.data.text.train_tokenizer import train_tokenizer

        train_tokenizer(dataset=str(folder / "text"), out=folder / "bpe", vocab_size=400, max_bytes=1 << 20)
        flags = ["--dataset", folder / "text", "--tokenizer", folder / "bpe", "--seq-len", 64]
        flags += ["--encoder", "transformers"]
        return 0 if chaos(flags, folder, kills=args.kills, seed=args.seed, units=UNITS) else 1


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
