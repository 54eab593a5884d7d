"""Small models on real text, to see which recipe learns faster: optimizers, rates, dense or experts, and its parts.

    python benchmarks/learning.py --text FOLDER      trains what is missing (parquet in FineWeb's schema, or a hub name)
    python benchmarks/learning.py --plan             what is done and what is not
    python benchmarks/learning.py --report           docs/learning*.md and their pictures from the results alone

- One run is a few minutes on one core. Its result is one JSON in benchmarks/results/learning, kept in git: nothing is
  retrained, and whoever starts this resumes where it stopped. A run that was killed starts over.
- Processes share the work through the file system alone: a run is claimed by a lock, which dies with its process. So
  `--jobs 2` is a second process of the same command, and starting the command twice is the same.
- The text is cut, tokenised and hashed into `--data` once. Results of other text are refused.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from learning_matrix import Results, matrix
from learning_recipe import recipe_matrix
from learning_rule import rule_matrix
from learning_run import SEQ_LEN, VOCAB_SIZE, Run

from moe.common.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
MAX_TOKENS, VAL_FRACTION = 4_000_000, 0.03


def prepare(data: Path, text: str | None) -> Path:
    """Tokenizer and shards in `data`; made from `text` where they are not there. Returns the shards' folder."""
    shards, tokenizer = data / "mds", data / "tokenizer"
    if (shards / "meta.json").is_file():
        return shards
    if text is None:
        raise InputError(f"{data} holds no data; --text FOLDER (parquet in FineWeb's schema) or a hub name makes it")
    from moe.data.text.train_tokenizer import train_tokenizer
    from moe.data.write.convert import convert
    from moe.data.write.request import Request

    source = {"config": "sample-10BT", "split": "train", "revision": None, "text_column": "text"}
    train_tokenizer(dataset=text, out=tokenizer, vocab_size=VOCAB_SIZE, max_bytes=1 << 24, overwrite=True, **source)  # type: ignore[arg-type]
    convert(
        Request(
            dataset=(text,), tokenizer=str(tokenizer.resolve()), seq_len=SEQ_LEN, out=shards, val_fraction=VAL_FRACTION,
            seed=17, max_documents=None, max_tokens=MAX_TOKENS, workers=1, encoder="auto", overwrite=False,
            skip_bad_files=False, **source,  # type: ignore[arg-type]
        )
    )  # fmt: skip
    return shards


def identity(shards: Path) -> str:
    """Of the tokens: the shards' own hashes, from their indexes."""
    indexes = [(shards / split / "index.json").read_bytes() for split in ("train", "val")]
    return hashlib.sha256(b"".join(indexes)).hexdigest()[:16]


@contextmanager
def claim(folder: Path, run: Run) -> Iterator[bool]:
    """Whether this process may make the run. The lock ends with the process, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / run.name, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def stages(results: Results) -> Iterator[tuple[str, list[Run] | None]]:
    """Of all questions: name, and runs as far as they are known."""
    yield from matrix(results)
    yield from rule_matrix(results)
    yield from recipe_matrix(results)


def pending(results: Results) -> tuple[list[Run], int]:
    """Runs that can be made now, the first first, and how many stages wait for them."""
    runs, waiting = dict[Run, None](), 0
    for _, known in stages(results):
        if known is None:
            waiting += 1
        else:
            runs |= dict.fromkeys(run for run in known if results.get(run) is None)
    return list(runs), waiting


def work(results: Results, data: Path, shards: Path) -> None:
    """Makes what is missing until nothing is, in the order of the matrix."""
    from learning_run import open_data, train

    digest, opened = identity(shards), open_data(shards)
    while True:
        runs, waiting = pending(results)
        if not runs:
            return
        for run in runs:
            with claim(data / "claims", run) as mine:
                if not mine or results.get(run) is not None:
                    continue
                start = time.monotonic()
                found = {**train(run, opened), "data": digest}
                results.put(run, found)
            left = len(pending(results)[0])
            later = f" and {waiting} stages that depend on them" if waiting else ""
            print(
                f"{time.strftime('%H:%M:%S')}  {run.name}: {found['final']} after {run.tokens:,} tokens, "
                f"{found['cpu_seconds']:.0f} CPU-s in {time.monotonic() - start:.0f} s; {left} runs left{later}",
                flush=True,
            )
            break  # what comes next may have changed
        else:
            time.sleep(10)  # the others are in other processes' hands


def check_same_data(results: Results, digest: str) -> None:
    for run in results.finished():
        found = results.get(run)
        assert found is not None
        if found["data"] != digest:
            raise InputError(
                f"{results.folder}/{run.name}.json was made from other text ({found['data']}, here {digest}); "
                "give another --results, or the same text"
            )


def train_missing(args: argparse.Namespace, results: Results, work: Callable[[Results, Path, Path], None]) -> int:
    """Runs `work` (results, folder of the data, shards) in `--jobs` processes; the exit code."""
    try:
        shards = prepare(args.data, args.text)
        check_same_data(results, identity(shards))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    others = [subprocess.Popen([*sys.orig_argv, "--jobs", "1"]) for _ in range(args.jobs - 1)]
    work(results, args.data, shards)
    return max([other.wait() for other in others], default=0)


def show_plan(results: Results) -> None:
    for stage, runs in stages(results):
        if runs is None:
            print(f"\n{stage}: waits for the runs above")
            continue
        print(f"\n{stage}: {sum(results.get(run) is not None for run in runs)} of {len(runs)}")
        for run in runs:
            found = results.get(run)
            print(f"  {'-' if found is None else found['final']:<8}  {run.name}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--text", default=None, help="folder or hub name of the text; needed once")
    add("--data", type=Path, default=ROOT / "data" / "learning", help="where tokenizer and shards go")
    add("--results", type=Path, default=ROOT / "benchmarks" / "results" / "learning")
    add("--jobs", type=int, default=2, help="runs at a time, one thread each")
    add("--plan", action="store_true", help="show what is done and what is not, train nothing")
    add("--report", action="store_true", help="write docs/learning*.md and their pictures, train nothing")
    args = parser.parse_args()
    results = Results(args.results)
    if args.plan:
        show_plan(results)
        return 0
    if args.report:
        from learning_report import write_report

        write_report(results, ROOT / "docs")
        return 0
    return train_missing(args, results, work)


if __name__ == "__main__":
    sys.exit(main())
