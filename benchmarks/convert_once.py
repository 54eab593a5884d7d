"""Conversions of one kind, in a process that has its imports behind it: started by benchmarks/convert.py.

    python benchmarks/convert_once.py ours TEXT TOKENIZER ENCODER
    python benchmarks/convert_once.py foundry TEXT TOKENIZER

Each line on stdin, `WORKERS OUT`, is one conversion of TEXT into OUT; the answer is one line of JSON: tokens, CPU and
wall seconds, peak memory of the largest process, bytes on the disk. `bare` in the place of WORKERS reads and encodes
only.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SEQ_LEN = 2048


def cpu_seconds() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


def peak_mb() -> int:
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) // 1024


def foundry(text: str, tokenizer: str) -> Callable[[str, str], dict[str, Any]]:
    from llmfoundry.command_utils.data_prep import convert_dataset_hf as module

    split = module.DataSplitConstants("train", "train", None, None)
    # its table of known datasets; the values only set the length of a progress bar
    module.CONSTS[text] = module.DatasetConstants(2000, 4, {"train": split})

    def run(workers: str, out: str) -> dict[str, Any]:
        module.convert_dataset_hf(
            dataset=text, data_subset=None, splits=["train"], out_root=out, compression=None, concat_tokens=SEQ_LEN,
            tokenizer=tokenizer, tokenizer_kwargs={}, bos_text="", eos_text="<|endoftext|>", no_wrap=False,
            num_workers=int(workers),  # 0 is more than its DataLoader can do
        )  # fmt: skip
        shards = json.loads(Path(out, "train", "index.json").read_text())["shards"]
        return {"tokens": SEQ_LEN * sum(shard["samples"] for shard in shards)}

    return run


class Shares:
    """CPU seconds of this process by what it was doing; an inner call's time is not its caller's."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._stack: list[str] = []
        self._since = time.process_time()

    def _book(self) -> None:
        now = time.process_time()
        key = self._stack[-1] if self._stack else "the rest"
        self.seconds[key] = self.seconds.get(key, 0.0) + now - self._since
        self._since = now

    @contextmanager
    def during(self, key: str) -> Iterator[None]:
        self._book()
        self._stack.append(key)
        yield
        self._book()
        self._stack.pop()

    def watch(self, owner: Any, name: str, key: str) -> None:
        original = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            with self.during(key):
                return original(*args, **kwargs)

        setattr(owner, name, watched)

    def watched_steps(self, make: Callable[..., Iterator[Any]], key: str) -> Callable[..., Iterator[Any]]:
        """The generator function `make`, whose own steps are booked; what is done between them is not."""

        def watched(*args: Any) -> Iterator[Any]:
            steps = make(*args)
            while True:
                with self.during(key):
                    step = next(steps, None)
                if step is None:
                    return
                yield step

        return watched

    def take(self) -> dict[str, float]:
        self._book()
        taken, self.seconds = self.seconds, {}
        return taken


def ours(text: str, tokenizer_folder: str, encoder: str) -> Callable[[str, str], dict[str, Any]]:
    from dataclasses import replace

    import pyarrow as pa

    from moe.data.text.encoders import settle_process
    from moe.data.text.reading import read_batches
    from moe.data.write import convert, packing, unit
    from moe.data.write.plan import make_plan
    from moe.data.write.request import Request
    from moe.data.write.shards import ShardFile
    from moe.data.write.state import open_workspace

    settle_process()
    request = Request(
        dataset=(text,), config=None, split="train", revision=None, text_column="text", tokenizer=tokenizer_folder,
        seq_len=SEQ_LEN, out="", val_fraction=0.005, seed=17, max_documents=None, max_tokens=None, workers=1,
        encoder=encoder, overwrite=True, skip_bad_files=False,
    )  # fmt: skip
    plan = make_plan(request, open_workspace("no-such-folder", overwrite=True))
    if plan is None or plan.job.encoder != encoder:
        raise SystemExit(f"{encoder} cannot be measured here")
    encode = unit._encoder(plan.job.encoder, plan.job.spec_json, plan.job.tokenizer)
    shares = Shares()
    unit.read_batches = shares.watched_steps(read_batches, "reading")
    shares.watch(type(encode), "encode", "encoding")
    shares.watch(unit, "clean", "checking rows")
    shares.watch(unit, "document_hashes", "hashing ids")
    shares.watch(packing.Packer, "add", "packing")
    for name in ("write", "close", "abandon"):
        shares.watch(ShardFile, name, "writing")
    shares.watch(convert, "merge_split", "writing")

    def bare() -> dict[str, Any]:
        tokens = 0
        for part in plan.units:
            for batch in read_batches(part, "text"):
                ids, offsets = encode.encode(batch.texts.cast(pa.large_string()))
                tokens += len(ids) + len(offsets) - 1  # an EOS a document, as the others count
        return {"tokens": tokens}

    def run(workers: str, out: str) -> dict[str, Any]:
        if workers == "bare":
            return bare()
        asked = replace(plan, request=replace(request, out=out, workers=int(workers)))
        space = open_workspace(out, overwrite=True)
        shares.take()
        with space.lock(plan.identity, plan.source.files, shared=False):
            left_out = convert.make_units(asked, space)
            job, found = convert.settle(asked, space, left_out)
            meta, _ = convert.publish(replace(asked, job=job), space, found, left_out, time.monotonic())
        return {"tokens": SEQ_LEN * sum(meta.samples.values()), "shares": shares.take() if workers == "1" else None}

    return run


def main() -> None:
    kind, *arguments = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the converters print is no answer
    converters: dict[str, Callable[..., Callable[[str, str], dict[str, Any]]]] = {"ours": ours, "foundry": foundry}
    run = converters[kind](*arguments)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        workers, out = line.split()
        shutil.rmtree(out, ignore_errors=True)
        wall, cpu = time.perf_counter(), cpu_seconds()
        result = run(workers, out)
        result |= {"wall_s": time.perf_counter() - wall, "cpu_s": cpu_seconds() - cpu, "peak_mb": peak_mb()}
        result["bytes"] = sum(path.stat().st_size for path in Path(out).rglob("*") if path.is_file())
        shutil.rmtree(out, ignore_errors=True)
        print(json.dumps(result), file=answers, flush=True)


if __name__ == "__main__":
    main()
