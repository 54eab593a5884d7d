"""What export and import need of memory beside the files they map: not a share of the model."""

from __future__ import annotations

import filecmp
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from moe.train.checkpointing.checkpoints import folder_name, read_checkpoint
from moe.use.inference import load_weights
from tests.tiny import divide

MEASURE = """
import json, sys, threading, time
import torch, transformers.models.qwen3_moe.modeling_qwen3_moe, matplotlib.figure
from pathlib import Path
from moe.train.checkpointing import parts
from moe.use.export import first_layers, hf_weights
from moe.use.export.from_hf import import_folder
from moe.use.export.to_hf import export
from moe.use.export.upcycle import Recipe

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

def mapped_too():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))

def peak(action, counted=anonymous):
    before, seen, stop = counted(), [], threading.Event()
    def watch():
        while not stop.is_set():
            seen.append(counted())
            time.sleep(0.002)
    thread = threading.Thread(target=watch)
    thread.start()
    action()
    stop.set()
    thread.join()
    return max(seen) - before

run, divided, dense, small, folder = map(Path, sys.argv[1:])
said = []
quiet = lambda line: None
there = peak(lambda: export(str(run), out=folder / "hf", shard_bytes=30_000_000, say=quiet))
again = peak(lambda: export(str(divided), out=folder / "again", shard_bytes=30_000_000, say=quiet))
export(str(dense), out=folder / "dense-hf", shard_bytes=30_000_000, say=quiet)
first_layers.MOST = hf_weights.MOST_MAPPED = parts.MOST_MAPPED = 1 << 23
recipe = Recipe(copies=2, pieces=2)
export(str(small), out=folder / "small-hf", say=quiet)  # first, for the pages of libraries that its code is in
import_folder(str(folder / "small-hf"), recipe=recipe, out=folder / "small-up", say=quiet)
back = peak(lambda: import_folder(str(folder / "hf"), out=folder / "back", say=said.append), mapped_too)
hf = str(folder / "dense-hf")
up = peak(lambda: import_folder(hf, recipe=recipe, out=folder / "up", say=said.append), mapped_too)
print(json.dumps([there, again, back, up, [line for line in said if line.startswith("verified")]]))
"""
FILE, ZERO = 30_000_000, folder_name(0)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.skipif(transformers.__version__.startswith("5"), reason="transformers 5 gathers the experts in memory")
def test_memory_does_not_grow_with_the_model(make_run: Callable, tmp_path: Path) -> None:
    shape = {"d_model": 256, "n_layers": 8, "n_experts": 8, "expert_hidden": 512, "head_dim": 16}
    run = make_run(**shape)
    dense = make_run(name="dense", **shape | {"n_layers": 16, "n_experts": 1, "top_k": 1, "expert_hidden": 2048})
    small = make_run(name="small", **shape | {"d_model": 32, "n_experts": 1, "top_k": 1, "expert_hidden": 64})
    size = (run / "step-00000010" / "state.pt").stat().st_size
    assert size > 100_000_000
    divided = tmp_path / "divided"
    shutil.copytree(run, divided)
    divide(divided / "step-00000010", 3)
    command = [sys.executable, "-c", MEASURE, str(run), str(divided), str(dense), str(small), str(tmp_path)]
    given_back = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}  # what is freed is not counted
    done = subprocess.run(command, capture_output=True, text=True, env=given_back)
    assert done.returncode == 0, done.stderr
    there, again, back, up, said = json.loads(done.stdout.splitlines()[-1])
    print(f"model {size:,} bytes in {len([*(tmp_path / 'hf').glob('*.safetensors')])} files; beyond the start")
    print(f"anonymous memory of an export: {there:,} and {again:,}")
    print(f"memory of an import, mapped pages and all: {back:,}, of a dense model's experts: {up:,}; {said}")
    assert there < size / 4 and again < size / 4
    assert back < 2 * FILE and up < 2 * FILE, "below two files"
    assert [re.sub(r".*, ", "", line) for line in said] == [
        "of the first 1 of 8 layers (8.39MB)",
        "of the first 1 of 16 layers (8.39MB)",
    ]
    for path in sorted((tmp_path / "hf").glob("*.safetensors")):
        assert filecmp.cmp(path, tmp_path / "again" / path.name, shallow=False), "whatever the checkpoint's format"
    before, after = (load_weights(read_checkpoint(path)) for path in (run / "step-00000010", tmp_path / "back" / ZERO))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
