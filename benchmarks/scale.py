"""Training on a trillion tokens that take no disk: sparse shards with valid headers (`make bench-scale`).

    python benchmarks/scale.py --tokens 1e12 --seq-lens 512 2048 --write

For each sequence length, and for a small dataset beside it: seconds from the command to the first step of a tiny model
with two loader workers, the largest process of the run (RssAnon and page tables), the most mapped pages of files that a
process held (page cache, shards among them, not counted there), and /dev/shm. Then, with the loader alone: the first
batch at 99% of an epoch, and a mixture of five streams over ten epochs, some batches of each, and a cold cache whose
remote is the large data: a folder, then a bucket on loopback (sparse_bucket.py), by the loader alone and by a run,
which also lists it in pages. `--only-bucket` measures the last two.
`--tree FOLDER` measures the code of another checkout. `--write` puts the table into docs/performance.md.
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
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.sparse_bucket import BUCKET, SparseBucket  # noqa: E402
from moe.common.units import short  # noqa: E402
from moe.data.meta import read_meta  # noqa: E402
from moe.data.write.shards import ShardFormat  # noqa: E402
from tests.tiny import tiny_config, write_config, write_text, write_tokenizer  # noqa: E402

PAGE = ROOT / "docs" / "performance.md"
BATCH, STEPS, STREAMS, EPOCHS = 8, 3, 5, 10
LOADER = """
import json, sys, time
from moe.data import StreamSpec, build_train_loader
folders, seq_len, vocab_size, batch, share, epochs = json.loads(sys.argv[1])
start = time.perf_counter()
loader = build_train_loader(
    {name: StreamSpec(folder, remote, "train", **weight) for name, folder, remote, weight in folders}, seq_len=seq_len,
    eos_id=0,
    vocab_size=vocab_size, document_mask=True, device_batch_size=batch, seed=17, num_workers=2)
length = loader.dataset.epoch_size // batch * batch
fresh = loader.dataset.state_dict(0, True)
for epoch in range(epochs):
    done = int(length * share) // batch * batch
    loader.load_state_dict({**fresh, "epoch": epoch, "sample_in_epoch": done, "num_canonical_nodes": 1})
    batches = iter(loader)
    next(batches)
    if not epoch:
        print("FIRST", time.perf_counter() - start, flush=True)
    for _ in range(20):
        next(batches)
    del batches
"""


def small_data(folder: Path, seq_len: int) -> Path:
    """Real text, tokenised: about a million tokens."""
    text = write_text(folder / "text.jsonl", documents=8000)
    tokenizer = write_tokenizer(folder / "tokenizer", text)
    command = [
        sys.executable,
        str(ROOT / "convert/fineweb_to_mds.py"),
        "--dataset",
        str(text),
        "--seq-len",
        str(seq_len),
    ]
    command += [
        "--tokenizer",
        str(tokenizer),
        "--out",
        str(folder / "data"),
        "--val-fraction",
        "0.05",
        "--workers",
        "1",
    ]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "data"


def large_data(small: Path, folder: Path, tokens: int) -> int:
    """The small data's validation, and `tokens` of zeros as sparse shards. Returns the number of shards."""
    meta = read_meta(small)
    layout = ShardFormat(seq_len=meta.seq_len, dtype=meta.dtype)
    each, samples = layout.samples_per_shard, tokens // meta.seq_len
    full, rest = divmod(samples, each)
    (folder / "train").mkdir(parents=True)
    infos, hashes = [], {}
    for number, held in enumerate([each] * full + [rest] * bool(rest)):
        begin = 4 + 4 * (held + 1) + len(json.dumps(layout.config, sort_keys=True))
        size = begin + held * meta.seq_len * layout.dtype.itemsize
        with open(folder / "train" / f"shard.{number:05}.mds", "wb") as file:
            file.write(np.array([held, begin], np.uint32).tobytes())
            file.truncate(size)
        if held not in hashes:  # all that hold as many are alike
            hashes[held] = hash_of(folder / "train" / f"shard.{number:05}.mds")
        infos.append({"samples": held, "bytes": size, "xxh64": hashes[held]})
        if number % 5000 == 0:
            print(f"  {number:,} of {full:,} shards", flush=True)
    layout.write_index(folder / "train", infos)
    (folder / "val").symlink_to(small / "val")
    found = json.loads((small / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**found, "samples": {**meta.samples, "train": samples}}))
    return len(infos)


def hash_of(path: Path) -> str:
    return xxhash.xxh64_hexdigest(path.read_bytes())


class Watch(threading.Thread):
    """The most that any process below `pid` has held, in MB: of its own, and of mapped files; and the most in /dev/shm
    above what was there before.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.largest, self.cached, self.shared = 0.0, 0.0, 0.0
        self._before, self.pid = shared_bytes(), os.getpid()
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.05):
            for own, cached in map(held_by, descendants(self.pid)):
                self.largest, self.cached = max(self.largest, own), max(self.cached, cached)
            self.shared = max(self.shared, (shared_bytes() - self._before) / 1e6)


def descendants(pid: int) -> list[int]:
    found, waiting = [], [pid]
    while waiting:
        try:
            parent = waiting.pop()
            children = [
                int(child)
                for task in os.listdir(f"/proc/{parent}/task")
                for child in Path(f"/proc/{parent}/task/{task}/children").read_text().split()
            ]
        except OSError:
            continue
        found += children
        waiting += children
    return found


def held_by(pid: int) -> tuple[float, float]:
    """MB of a process's own memory, and of files that it has mapped."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0, 0.0
    found = {name: int(kb) / 1e3 for name, kb in re.findall(r"(RssAnon|VmPTE|RssFile):\s+(\d+) kB", status)}
    return found.get("RssAnon", 0.0) + found.get("VmPTE", 0.0), found.get("RssFile", 0.0)


def shared_bytes() -> int:
    total = 0
    with os.scandir("/dev/shm") as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # a process that ends takes its own away
                total += entry.stat().st_size if re.match(r"\d{6}_", entry.name) else 0
    return total


Found = tuple[float, float, float, float]


def measured(command: list[str], tree: Path, mark: str, where: Path) -> Found:
    """(seconds to the line that holds `mark`, MB of the largest process, MB of mapped files, MB of /dev/shm)."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    watch, start, first = Watch(), time.perf_counter(), 0.0
    tail: list[str] = []
    watch.start()
    with subprocess.Popen(
        command, env=environment, cwd=where, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            tail = [*tail[-20:], line]
            if mark in line and not first:
                first = time.perf_counter() - start
    watch.done.set()
    watch.join()
    if process.returncode or not first:
        sys.exit("".join(tail) + f"\n{command} ended with {process.returncode}")
    return first, watch.largest, watch.cached, watch.shared


def train(data: Path, folder: Path, seq_len: int, tree: Path, name: str, remote: str | None = None) -> Found:
    config = tiny_config(folder, max_seq_len=seq_len, global_train_batch_size=BATCH, max_duration=f"{STEPS}ba")
    config["model"]["document_mask"] = False  # the large data is nothing but EOS
    config |= {
        "num_workers": 2,
        "train_data": {"local": str(data), "remote": remote},
        "eval_data": None,
        "save_interval": "100ba",
    }
    config |= {"save_folder": str(folder / f"run-{name}"), "scheduler": {"name": "constant_with_warmup"}}
    path = write_config(folder / f"{name}.yaml", config)
    return measured([sys.executable, "-m", "moe.cli.main", "train", str(path)], tree, "step 1/", folder)


def from_bucket(folder: Path, seq_len: int, tree: Path) -> Iterator[tuple[str, Found]]:
    """A loader's and a run's first batch, whose cache is empty and whose remote is the large data in a bucket."""
    bucket = SparseBucket(folder)
    os.environ.update(bucket.environment())
    remote = f"s3://{BUCKET}"
    for what in ("loader", "moe train, first step"):
        cache = folder / f"cold-{what[:3]}"
        bucket.requests.clear()
        if what == "loader":
            found = load([["", str(cache), f"{remote}/large", {}]], folder, seq_len, tree, 0.0, 1)
        else:
            found = train(cache, folder, seq_len, tree, "bucket", remote=f"{remote}/large")
        asked = bucket.requests
        shards, pages = (sum(count for name, count in asked.items() if part in name) for part in (".mds", "list "))
        shutil.rmtree(cache)
        yield f"{what}, cold bucket ({shards} shards fetched, {pages} pages listed)", found
    bucket.close()


def load(folders: list, folder: Path, seq_len: int, tree: Path, share: float, epochs: int) -> Found:
    given = json.dumps([folders, seq_len, 300, BATCH, share, epochs])
    return measured([sys.executable, "-c", LOADER, given], tree, "FIRST", folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=float, default=1e12)
    parser.add_argument("--seq-lens", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--tree", type=Path, default=ROOT, help="the checkout whose code is measured")
    parser.add_argument("--only-bucket", action="store_true", help="of large data only what is read from a bucket")
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    args = parser.parse_args()
    lines = [
        "| data | what | first batch after | largest process | over the small data | page cache mapped | /dev/shm |",
        "|---|---|---|---|---|---|---|",
    ]

    def add(data: str, what: str, found: Found, base: Found) -> None:
        over = f"{found[1] - base[1]:+,.0f} MB"
        memory = f"{found[1]:,.0f} MB | {over} | {found[2]:,.0f} MB | {found[3]:.1f} MB"
        lines.append(f"| {data} | {what} | {found[0]:.1f} s | {memory} |")
        print(lines[-1], flush=True)

    for seq_len in args.seq_lens:
        with tempfile.TemporaryDirectory() as root:
            folder = Path(root)
            small = small_data(folder, seq_len)
            shards = large_data(small, folder / "large", int(args.tokens))
            streams = 0 if args.only_bucket else STREAMS
            five = [large_data(small, folder / f"s{i}", int(args.tokens) // STREAMS) for i in range(streams)]
            print(f"S={seq_len}: {shards:,} shards, {int(args.tokens) // seq_len:,} samples", flush=True)
            name = f"{short(args.tokens)} tokens, S = {seq_len:,}, {shards:,} shards"
            run = train(small, folder, seq_len, args.tree, "small")
            base = load([["", str(small), None, {}]], folder, seq_len, args.tree, 0.0, 1)
            little = f"{read_meta(small).tokens['train'] / 1e6:.1f}M tokens, S = {seq_len:,}"
            add(little, "moe train, first step", run, run)
            add(little, "loader", base, base)
            for what, found in from_bucket(folder, seq_len, args.tree):
                add(name, what, found, base if what.startswith("loader") else run)
            if args.only_bucket:
                continue
            add(name, "moe train, first step", train(folder / "large", folder, seq_len, args.tree, "large"), run)
            large: list[list[Any]] = [["", str(folder / "large"), None, {}]]
            for what, share in (("loader", 0.0), ("loader at 99% of an epoch", 0.99)):
                add(name, what, load(large, folder, seq_len, args.tree, share, 1), base)
            cold = [["", str(folder / "cache"), str(folder / "large"), {}]]
            add(name, "loader, cold, `remote` on this machine", load(cold, folder, seq_len, args.tree, 0.5, 1), base)
            weights = [0.4, 0.3, 0.15, 0.1, 0.05]
            mixed = [[f"s{i}", str(folder / f"s{i}"), None, {"proportion": weights[i]}] for i in range(STREAMS)]
            what = f"loader, {STREAMS} streams of {five[0]:,} shards, {EPOCHS} epochs begun"
            add(name, what, load(mixed, folder, seq_len, args.tree, 0.5, EPOCHS), base)
    machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    text = "\n".join([f"`python benchmarks/scale.py --write` on {machine}.", "", *lines])
    if args.write:
        page = PAGE.read_text(encoding="utf-8")
        changed = re.subn(
            r"(<!-- scale -->\n).*?(<!-- /scale -->)", lambda m: f"{m[1]}{text}\n{m[2]}", page, flags=re.S
        )
        assert changed[1] == 1, f"{PAGE} has no place for the table"
        PAGE.write_text(changed[0], encoding="utf-8")


if __name__ == "__main__":
    main()
