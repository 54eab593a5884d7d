"""Conversion of very many files (`make bench-convert-scale`): small ones here, footers of a hub, a hub that limits.

    python benchmarks/convert_scale.py --files 100000 --footers 27000 --write

- FILES jsonl files of a few documents each, two workers: seconds from the command to the dataset,
  and the memory (RssAnon and page tables) of the process that starts the workers, and of the largest worker.
- FOOTERS parquet files of a hub on loopback that answers each request after 0.1 s: seconds until all are planned.
- The same hub with at most 3,000 requests in 5 minutes (HTTP 429 beyond): seconds until the first unit is done, and
  what the progress line says then.

`--kill` ends the conversion of small files with SIGKILL when half are done, and goes on: the seconds are those of both.
`--tree FOLDER` measures the code of another checkout; all is started in a folder without code, as Python looks there
first. `--write` puts the table into docs/performance.md, with `--footers 0` into a place of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.scale import descendants, held_by  # noqa: E402
from moe.data.meta import read_meta  # noqa: E402
from tests.tiny import write_text, write_tokenizer  # noqa: E402
from tests.unit.data.hub_server import Hub  # noqa: E402

PAGE = ROOT / "docs" / "performance.md"
ANSWER_S, MOST_REQUESTS, WINDOW_S = 0.1, 3000, 300.0
GOALS = {"small files": 300.0, "footers": 180.0}
PLAN = """
import sys, time
from moe.data.text.planning import plan_units
from moe.data.text.sources import resolve
files = resolve(dataset=("some/set",), config=None, split="train", revision=None).files
start = time.perf_counter()
units, bad = plan_units(files, "text")
assert len(units) == len(files) and not bad, (len(units), bad[:1])
print("SECONDS", time.perf_counter() - start)
"""


def convert(dataset: str, tokenizer: Path, out: Path) -> list[str]:
    own = ["--seq-len", "512", "--workers", "2", "--tokenizer", str(tokenizer), "--out", str(out)]
    return [sys.executable, "-m", "moe.cli.main", "convert", "--dataset", dataset, *own]


def small_files(folder: Path, count: int, text: Path) -> Path:
    lines = text.read_text().splitlines()
    for number in range(count):
        place = folder / f"{number // 1000:04}"
        place.mkdir(parents=True, exist_ok=True)
        documents = [lines[(3 * number + i) % len(lines)] for i in range(1 + number % 4)]
        rows = [{**json.loads(line), "id": f"{number}-{i}"} for i, line in enumerate(documents)]
        (place / f"{number:07}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def parquet_files(folder: Path, count: int) -> Path:
    folder.mkdir()
    pq.write_table(pa.table({"text": ["a few words of text"] * 50, "id": [str(i) for i in range(50)]}), folder / "0")
    content = (folder / "0").read_bytes()
    (folder / "0").unlink()
    for number in range(count):
        (folder / f"{number:05}.parquet").write_bytes(content)
    return folder


class Limit:
    """Answers after ANSWER_S; with `limited`, 429 beyond MOST_REQUESTS in WINDOW_S."""

    def __init__(self, *, limited: bool) -> None:
        self._times: deque[float] = deque()
        self._lock, self._limited = threading.Lock(), limited

    def __call__(self, path: str, count: int) -> str | None:
        if not path.endswith(".parquet"):
            return None
        time.sleep(ANSWER_S)
        if not self._limited:
            return None
        now = time.monotonic()
        with self._lock:
            while self._times and now - self._times[0] > WINDOW_S:
                self._times.popleft()
            if len(self._times) >= MOST_REQUESTS:
                return "429"
            self._times.append(now)
        return None


def watched(
    command: list[str], environment: dict[str, str], folder: Path, kill: Callable[[], bool] = lambda: False
) -> tuple[float, float, float]:
    """(seconds, MB of the process that starts the others, MB of the largest of these). Killed once `kill` says so."""
    begun, own, largest = time.perf_counter(), 0.0, 0.0
    with (
        open(folder / "log", "w") as log,
        subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log) as process,
    ):
        while process.poll() is None:
            own = max(own, held_by(process.pid)[0])
            largest = max([largest, *(held_by(pid)[0] for pid in descendants(process.pid))])
            if kill():
                process.kill()
                break
            time.sleep(0.1)
    if process.returncode not in (0, -signal.SIGKILL):
        sys.exit((folder / "log").read_text()[-2000:])
    return time.perf_counter() - begun, own, largest


def small_row(count: int, command: list[str], environment: dict[str, str], folder: Path, *, kill: bool) -> list:
    """Of the table: what was done, what was measured, the goal, whether it was met."""
    out = Path(command[-1])

    def half() -> bool:
        return len(list(Path(f"{out}.partial").glob("units/*-*-*/done.json"))) > count / 512 / 2

    first, after = (0.0, 0.0, 0.0), ""
    if kill:
        first = watched(command, environment, folder, half)
        after = f"; killed (-9) after {first[0]:,.0f} s with half of them done, then "
    begun = time.perf_counter()
    again = watched(command, environment, folder)
    if kill:
        told = re.search(r"resuming: (\d+) of", (folder / "log").read_text())
        after += f"resumed with {int(told[1]) if told else 0:,} done, {time.perf_counter() - begun:,.0f} s"
    made, wanted = sum(read_meta(out).documents.values()), sum(1 + number % 4 for number in range(count))
    if made != wanted:
        sys.exit(f"{made} documents, there are {wanted}")
    took, own, worker = first[0] + again[0], max(first[1], again[1]), max(first[2], again[2])
    measured = (
        f"{took:,.0f} s, {count / took:,.0f} files a second, {own:,.0f} MB, each worker up to {worker:,.0f}{after}"
    )
    goal, met = ("5 minutes", took <= GOALS["small files"]) if count <= 100_000 else ("", None)
    return [f"{count:,} small jsonl files, {made:,} documents, 2 workers", measured, goal, met]


def until_first_unit(command: list[str], environment: dict[str, str], out: Path, folder: Path) -> tuple[float, str]:
    """(seconds, the last line of progress); the conversion is ended then."""
    begun = time.perf_counter()
    with (
        open(folder / "log", "w") as log,
        subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log) as process,
    ):
        while process.poll() is None and not any(Path(f"{out}.partial").glob("units/*/done.json")):
            time.sleep(0.1)
        took = time.perf_counter() - begun
        time.sleep(12)  # a line comes every ten seconds
        process.terminate()
    lines = [line for line in (folder / "log").read_text().splitlines() if " left" in line]
    return took, " ".join(lines[-1].split()) if lines else "no line of progress"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--footers", type=int, default=27_000)
    parser.add_argument("--kill", action="store_true", help="kill the conversion of small files once, half done")
    parser.add_argument("--tree", type=Path, default=ROOT, help="the checkout whose code is measured")
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    args = parser.parse_args()
    environment = {**os.environ, "PYTHONPATH": str(args.tree), "PYTHONUNBUFFERED": "1"}
    lines = ["| | measured | goal | met |", "|---|---|---|---|"]

    def add(what: str, measured: str, goal: str = "", met: bool | None = None) -> None:
        lines.append(f"| {what} | {measured} | {goal} | {'' if met is None else 'yes' if met else 'no'} |")
        print(lines[-1], flush=True)

    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        text = write_text(folder / "text.jsonl", documents=2000)
        tokenizer = write_tokenizer(folder / "tokenizer", text)
        if args.files:
            dataset = small_files(folder / "small", args.files, text)
            command = convert(str(dataset), tokenizer, folder / "out")
            add(*small_row(args.files, command, environment, folder, kill=args.kill))
        if args.footers:
            for limited in (False, True):
                files = parquet_files(folder / f"set-{limited}", args.footers)
                hub = Hub({"some/set": files}, Limit(limited=limited))
                patch.object(hub._server, "handle_error").start()  # the conversion is ended while it asks
                there = {**environment, "HF_ENDPOINT": hub.url}
                if limited:
                    command = convert("some/set", tokenizer, folder / "hub")
                    took, line = until_first_unit(command, there, folder / "hub", folder)
                    what = f"{args.footers:,} files, 3,000 requests in 5 minutes: first unit done"
                    add(what, f"after {took:,.0f} s; then `{line}`", "before all are planned", " left" in line)
                else:
                    done = subprocess.run(
                        [sys.executable, "-c", PLAN], env=there, cwd=folder, capture_output=True, text=True
                    )
                    found = re.search(r"SECONDS (\S+)", done.stdout)
                    if not found:
                        sys.exit(done.stdout[-1000:] + done.stderr[-2000:])
                    took = float(found[1])
                    what = f"{args.footers:,} footers at {ANSWER_S} s each, planned"
                    add(what, f"{took:,.0f} s", "3 minutes", took <= GOALS["footers"])
                hub.close()
    machine = (
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, load average {os.getloadavg()[0]:.1f} at the end"
    )
    own = " ".join(["python benchmarks/convert_scale.py", *sys.argv[1:]])
    text_out = "\n".join([f"`{own}` on {machine}.", "", *lines])
    print(text_out, flush=True)
    if args.write:
        page = PAGE.read_text(encoding="utf-8")
        place = "many files" if args.footers else "small files"
        mark = rf"(<!-- {place} -->\n).*?(<!-- /{place} -->)"
        found_page = re.subn(mark, lambda m: f"{m[1]}{text_out}\n{m[2]}", page, flags=re.S)
        assert found_page[1] == 1, f"{PAGE} has no place for the table"
        PAGE.write_text(found_page[0], encoding="utf-8")


if __name__ == "__main__":
    main()
