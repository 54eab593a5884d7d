"""How long saving holds up training: the demo's model, a checkpoint every 4 steps (`make bench-checkpoint`).

Prints the training thread's pause per save beside the time of a step and the time of the full write (serialise, fsync,
hash, rename), which the background thread takes and a saver that writes in place would add to the step.
"""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from moe.cli import train as train_command  # noqa: E402
from moe.train.callbacks import saver  # noqa: E402
from moe.train.callbacks.losses import StepLosses  # noqa: E402
from tests.tiny import write_text, write_tokenizer  # noqa: E402

STEPS, EVERY = 32, 4
times: dict[str, list[float]] = {"step": [], "blocked": [], "write": []}


def timed(name: str, plain):
    def call(self, *args):
        start = time.perf_counter()
        plain(self, *args)
        times[name].append(time.perf_counter() - start)

    return call


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    text = write_text(folder / "text.jsonl", documents=3000)
    write_tokenizer(folder / "tokenizer", text)
    command = [sys.executable, str(ROOT / "convert/fineweb_to_mds.py"), "--dataset", str(text), "--seq-len", "256"]
    command += ["--tokenizer", str(folder / "tokenizer"), "--out", str(folder / "data"), "--val-fraction", "0.02"]
    subprocess.run(command, check=True, capture_output=True)
    begun = []
    start_step, end_step = StepLosses.batch_start, StepLosses.after_train_batch

    def begin(self, state, logger):
        begun.append(time.perf_counter())
        start_step(self, state, logger)

    def end(self, state, logger):
        end_step(self, state, logger)
        times["step"].append(time.perf_counter() - begun[-1])

    patch.object(StepLosses, "batch_start", begin).start()
    patch.object(StepLosses, "after_train_batch", end).start()
    save = saver.CheckpointSaver.save
    patch.object(saver.CheckpointSaver, "_write", timed("write", saver.CheckpointSaver._write)).start()

    def blocking(self, state, logger):
        before, start = self.saved_step, time.perf_counter()
        save(self, state, logger)
        if self.saved_step != before:
            times["blocked"].append(time.perf_counter() - start)

    patch.object(saver.CheckpointSaver, "save", blocking).start()
    code = train_command.main(
        [
            str(ROOT / "yamls/demo.yaml"),
            f"tokenizer={folder / 'tokenizer'}",
            f"train_data.local={folder / 'data'}",
            "eval_data=null",
            f"max_duration={STEPS}ba",
            "scheduler.t_warmup=4ba",
            f"save_interval={EVERY}ba",
            f"save_folder={folder / 'run'}",
        ]
    )
    assert code == 0
    size = (sorted((folder / "run").glob("step-*"))[-1] / "state.pt").stat().st_size
    step, blocked, write = (statistics.median(times[name][1:]) for name in ("step", "blocked", "write"))
    worst = max(times["blocked"])
    for line in (
        f"\n{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        f"checkpoint of {size / 1e6:.0f} MB, {len(times['blocked'])} saves; medians",
        f"  a step                     {step * 1e3:8.1f} ms",
        f"  training thread held up    {blocked * 1e3:8.1f} ms = {blocked / step:.2f} steps (worst {worst / step:.2f})",
        f"  the write, in background   {write * 1e3:8.1f} ms = {write / step:.2f} steps",
    ):
        print(line)


if __name__ == "__main__":
    main()
