"""The proof that a conversion survives anything: kill -9 at random moments, many times, then let it finish.

    make chaos-convert        or: python tests/chaos/convert_kills.py --kills 20

Every kill hits the parent process at a random moment of what an undisturbed run takes, the merge included; its workers
must end by themselves. At the end the bytes are compared with those of the undisturbed run. Exit code 1 if they differ.
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
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def start(*flags: object, script: str = "fineweb_to_mds.py") -> subprocess.Popen:
    """A conversion script in a session of its own."""
    command = [sys.executable, str(ROOT / "convert" / script), *map(str, flags)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def done_units(partial: Path) -> int:
    return len([path for path in partial.glob("units/*") if not path.name.startswith(".")])


def session_is_empty(session: int) -> bool:
    """Whether no process of the session is left."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
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
        return "the result is there"
    if (partial / "merged").exists():
        return "in the merge"
    return f"{done_units(partial)} of {units} units done" if partial.exists() else "before the first unit"


def finished(process: subprocess.Popen) -> float:
    """Wait for a run that nobody disturbs. Returns its seconds."""
    began = time.monotonic()
    out, err = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"exit code {process.returncode}\n{out}\n{err}")
    return time.monotonic() - began


def chaos(flags: Sequence[object], folder: Path, *, kills: int, seed: int, units: int) -> bool:
    """Whether `kills` killed runs and a last one give the bytes of an undisturbed one. Prints a line a kill."""
    random.seed(seed)
    seconds = finished(start(*flags, "--out", folder / "whole", "--workers", 2))
    expected = digests(folder / "whole")
    size = sum(path.stat().st_size for path in (folder / "whole").rglob("*") if path.is_file())
    print(f"undisturbed: {seconds:.1f} s, {len(expected)} files, {size:,} bytes", flush=True)
    out = folder / "out"
    landed = 0
    while landed < kills:
        process = start(*flags, "--out", out, "--workers", random.choice((1, 2, 5)))
        time.sleep(random.uniform(0, seconds))
        if kill(process):
            landed += 1
            print(f"kill {landed:>2}: {state(out, units)}", flush=True)
        if out.exists() and landed < kills:  # it had ended: begin again, so that the next has something to kill
            print("         (it ended, as undisturbed)" if digests(out) == expected else "DIFFERS", flush=True)
            shutil.rmtree(out)
    took = finished(start(*flags, "--out", out, "--workers", 2))
    same = digests(out) == expected
    print(f"last run: {took:.1f} s; bytes {'as undisturbed' if same else 'DIFFER'}", flush=True)
    return same and not out.with_name("out.partial").exists()


def main() -> int:
    from tests.unit.data.conftest import make_texts, write_parquet

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-convert-") as name:
        folder = Path(name)
        for i in range(48):
            write_parquet(folder / "text" / f"{i:02}.parquet", make_texts(1000, seed=i))
        from moe.data.train_tokenizer import train_tokenizer

        train_tokenizer(dataset=str(folder / "text"), out=folder / "bpe", vocab_size=400, max_bytes=1 << 20)
        flags = ["--dataset", folder / "text", "--tokenizer", folder / "bpe", "--seq-len", 64]
        flags += ["--encoder", "transformers"]
        return 0 if chaos(flags, folder, kills=args.kills, seed=args.seed, units=48) else 1


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
