"""What export and import need of memory beside the files they map: not a share of the model."""

from __future__ import annotations

import filecmp
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from tests.tiny import divide

MEASURE = """
import json, sys, threading, time
import torch, transformers.models.qwen3_moe.modeling_qwen3_moe, matplotlib.figure
from pathlib import Path
from moe.use.export import hf_weights
from moe.use.export.from_hf import import_folder
from moe.use.export.hf_weights import opened, read_weights
from moe.use.export.settings import from_config
from moe.use.inference import build_skeleton
from moe.use.export.to_hf import export

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

run, folder = sys.argv[1], Path(sys.argv[2])
quiet = lambda line: None
there = peak(lambda: export(run, out=folder / "hf", shard_bytes=30_000_000, say=quiet))
back = peak(lambda: import_folder(str(folder / "hf"), out=folder / "back", say=quiet))
divided = peak(lambda: export(sys.argv[3], out=folder / "again", shard_bytes=30_000_000, say=quiet))

def read():
    content = json.loads((folder / "hf" / "config.json").read_text())
    settings, family = from_config(content, "hf")
    wanted = build_skeleton(settings, vocab_size=content["vocab_size"], eos_id=0).state_dict()
    (folder / "scratch").mkdir()
    with opened(folder / "hf") as place:
        weights = read_weights(place, wanted, source="hf", family=family, scratch=folder / "scratch")
        held.update({name: weight[:1].clone() for name, weight in weights.items() if weight.ndim < 3})

held, hf_weights.MOST_MAPPED = {}, 1 << 23
print(json.dumps([there, back, divided, peak(read, mapped_too), len(held)]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.skipif(transformers.__version__.startswith("5"), reason="transformers 5 gathers the experts in memory")
def test_memory_does_not_grow_with_the_model(make_run: Callable, tmp_path: Path) -> None:
    shape = {"d_model": 256, "n_layers": 2, "n_experts": 16, "expert_hidden": 1024, "head_dim": 16}
    run = make_run(**shape)
    size = (run / "step-00000010" / "state.pt").stat().st_size
    assert size > 100_000_000
    divided = tmp_path / "divided"
    shutil.copytree(run, divided)
    divide(divided / "step-00000010", 3)
    command = [sys.executable, "-c", MEASURE, str(run), str(tmp_path), str(divided)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    there, back, again, reading, held = json.loads(done.stdout.splitlines()[-1])
    print(f"model {size:,} bytes; anonymous memory beyond the start: export {there:,} and {again:,}, import {back:,}")
    print(f"reading {len([*(tmp_path / 'hf').glob('*.safetensors')])} files, mapped pages and all: {reading:,}")
    assert there < size / 4 and back < size / 4 and again < size / 4
    assert held > 10 and reading < 2 * 30_000_000, "below two files"
    for path in sorted((tmp_path / "hf").glob("*.safetensors")):
        assert filecmp.cmp(path, tmp_path / "again" / path.name, shallow=False), "whatever the checkpoint's format"
    assert torch.load(tmp_path / "back" / "step-00000000" / "state.pt", mmap=True)
