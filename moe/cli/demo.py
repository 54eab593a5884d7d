"""Makes text, tokenizer and shards from what is on this machine, and trains a small MoE; uses again what is there."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from moe.cli.yaml import folder as yamls
from moe.common.paths import local_path
from moe.common.units import tell

PROMPTS = ("Return a new list with", "The function raises an error if", "This module provides")
RUN = Path("checkpoints/demo")
DATA = Path("data/demo")
SAVING = 60  # seconds that Ctrl+C waits for a run to save and end


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", default=str(DATA), help="where text, tokenizer and shards go")


def run(args: argparse.Namespace) -> int:
    args.data = local_path(args.data, "--data")
    tell(f"moe demo: text, tokenizer and shards in {args.data}, then a small training ...")
    from moe.data.text.corpus import build_corpus
    from moe.data.text.train_tokenizer import train_tokenizer

    start = time.monotonic()
    moe = str(Path(sys.executable).with_name("moe"))
    text, tokenizer, shards = args.data / "text", args.data / "tokenizer", args.data / "mds"
    _title(1, "Text: English documentation that is on this machine, as parquet in FineWeb's schema")
    if _there(args.data / "text.done", text):
        build_corpus(text)
        (args.data / "text.done").touch()
    _title(2, "Tokenizer: an 8,192-token byte-level BPE trained on it")
    if _there(tokenizer / "tokenizer_config.json"):
        train_tokenizer(dataset=str(text), out=tokenizer, vocab_size=8192)
    _title(3, "Shards: the text as tokens")
    command = ["convert", "--dataset", str(text), "--tokenizer", _folder(tokenizer)]
    command += ["--seq-len", "256", "--val-fraction", "0.01", "--out", str(shards)]
    if _there(shards / "meta.json") and (code := _call([moe, *command], "moe")):
        return code
    _title(4, "Training")
    train = ["train", str(yamls() / "demo.yaml")]
    if args.data != DATA:
        train += [f"tokenizer={_folder(tokenizer)}", f"train_data.local={shards}", f"eval_data.local={shards}"]
    if code := _call([moe, *train], "moe"):
        return code
    _title(5, "What it learned to write")
    prompts = [argument for prompt in PROMPTS for argument in ("--prompt", prompt)]
    generate = ["generate", str(RUN), "--max-new-tokens", "40", *prompts]
    if code := _call([moe, *generate], "moe"):
        return code
    _summary(time.monotonic() - start)
    return 0


def _folder(path: Path) -> str:
    """A folder's name that cannot be taken for a hub's."""
    return str(path) if path.is_absolute() else f"./{path}"


def _title(number: int, text: str) -> None:
    tell(f"\n[{number}/5] {text}")


def _there(path: Path, folder: Path | None = None) -> bool:
    """Whether the step that makes `path` in `folder` must run; says so where it need not."""
    if path.exists():
        tell(f"{folder or path.parent} is there already")
    return not path.exists()


def _call(command: list[str], name: str) -> int:
    words = [name, *command[1:]]
    tell("$ " + " ".join(f'"{w}"' if " " in w else w for w in words))
    threads = str(os.cpu_count() or 1)
    process = subprocess.Popen(command, env={"OMP_NUM_THREADS": threads, **os.environ})
    try:
        return process.wait()
    except KeyboardInterrupt:  # which the terminal sends to the process as well
        return _stopped(process)


def _stopped(process: subprocess.Popen[bytes]) -> int:
    """The exit code once the interrupted process has saved and ended; a second Ctrl+C ends it sooner."""
    tell(f"\nstopping: the run saves and ends (up to {SAVING} s) ...")
    end = time.monotonic() + SAVING
    while time.monotonic() < end:
        try:
            code = process.wait(timeout=max(0.0, end - time.monotonic()))
        except KeyboardInterrupt:
            continue
        except subprocess.TimeoutExpired:
            break
        return 128 - code if code < 0 else code or 130  # 0: it had come to its end; the steps after it are skipped
    tell(f"process {process.pid} is still saving after {SAVING} s; it continues in the background")
    return 130


def _summary(seconds: float) -> None:
    rows = [json.loads(line) for line in (RUN / "metrics.jsonl").read_text().splitlines()]
    losses = [(row["step"], row["metrics/eval/loss"]) for row in rows if "metrics/eval/loss" in row]
    (first, before), (last, after) = losses[0], losses[-1]
    newest = sorted(RUN.glob("step-*"))[-1]
    tell(
        f"""
validation loss {before:.3f} at step {first} -> {after:.3f} at step {last} ({seconds / 60:.1f} minutes this time)
checkpoint      {newest}
logs            {RUN}/metrics.jsonl, {RUN}/tensorboard

The same with FineWeb (10 billion tokens; the last wants a GPU):
  moe convert
  moe yaml 500m
  moe train 500m.yaml
"""
    )
