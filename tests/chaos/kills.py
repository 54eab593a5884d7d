"""Kills a small training again and again, starts the same command each time, and compares what comes out.

`make chaos`: 50 kills, their moments drawn from a seeded list. Trainings with one rank (by `python train.py` and
`composer -n 1` in turn) and with two (`composer -n 2`) are killed and compared with an uninterrupted one of as many
ranks: final weights, the loss of every step, the samples of every step. Two more ranks share the model (FSDP2), and
write their checkpoints together. At the end no process, no shared memory and no
temporary file of theirs may be left.
"""

from __future__ import annotations

import argparse
import glob
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from pathlib import Path

from moe.train.checkpointing.checkpoints import read_checkpoint
from moe.train.checkpointing.contents import full_content
from tests import starts
from tests.tiny import tiny_config, write_config, write_text, write_tokenizer

ROOT = Path(__file__).resolve().parents[2]
COMPOSER = str(Path(sys.executable).with_name("composer"))
SLOW = 0.03  # seconds that each file's sync and each evaluation batch takes longer
PATIENCE = 240.0  # seconds for a start to come to its first step on a busy machine
KINDS = ("trainer", "SIGTERM", "write", "worker", "SIGINT", "eval", "launcher", "start")
KINDS_OF_TWO = ("rank", *KINDS)
KINDS_OF_SHARDED = ("write", "rank", "write", *KINDS)  # first of all in the middle of a part's write
STOPPED = 75


@dataclass
class Kill:
    kind: str
    life: int
    step: int  # the last one begun
    code: int | None  # exit code of the command
    seconds: float  # from the kill until nothing of the start was left


@dataclass
class Training:
    """One run folder, the command that trains it and what its starts wrote down."""

    folder: Path
    name: str
    ranks: int
    sharded: bool = False
    new: bool = True  # False: starts are forked (tests/starts.py)
    kills: list[Kill] = field(default_factory=list)
    life: int = 0
    process: subprocess.Popen | None = None
    told: list[dict] = field(default_factory=list)
    read: int = 0  # bytes of the trace

    @property
    def trace(self) -> Path:
        return self.folder / f"{self.name}.trace"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def start(self, launcher: bool = False) -> None:
        """With one rank `composer` and `python` start it in turn, or `composer` where `launcher` is asked for."""
        self.life += 1
        launcher |= self.ranks > 1 or self.life % 2 == 0
        command = [COMPOSER, "-n", str(self.ranks)] if launcher else [sys.executable]
        command += [str(ROOT / "tests/chaos/traced.py"), str(self.folder / "chaos.yaml"), f"run_name={self.name}"]
        command += ["parallelism.fsdp2=true"] * self.sharded
        env = {
            **os.environ,
            "CHAOS_TRACE": str(self.trace),
            "CHAOS_LIFE": str(self.life),
            "CHAOS_SLOW": str(SLOW),
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(self.folder / "tmp"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "inductor"),
            "PYTHONPATH": str(ROOT),
        }
        with open(self.log, "a") as log:
            log.write(f"--- start {self.life}: {' '.join(command[:3])}\n")
            log.flush()
            settings = {"stdout": log, "stderr": log, "start_new_session": True, "env": env}
            self.process = starts.popen(command, new=self.new, **settings)

    def events(self, life: int | None = None) -> list[dict]:
        """All that the starts, or one of them, have told so far."""
        if self.trace.exists():
            with open(self.trace, "rb") as file:
                file.seek(self.read)
                fresh = file.read()
            fresh = fresh[: fresh.rfind(b"\n") + 1]
            self.read += len(fresh)
            self.told += [json.loads(line) for line in fresh.splitlines()]
        return [event for event in self.told if life is None or event["life"] == life]

    def wait_for(self, event: str, count: int) -> bool:
        """Until this start has told `event` that often; False where it ended before."""
        assert self.process is not None
        end = time.monotonic() + PATIENCE
        while True:
            if sum(e["event"] == event for e in self.events(self.life)) >= count:
                return True
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < end, (
                f"{self.name}: no {event} in {PATIENCE:.0f} s\n{self.log.read_text()[-3000:]}"
            )
            time.sleep(0.01)

    def pid(self, rank: int) -> int:
        """The process of a rank of this start."""
        return next(e["pid"] for e in self.events(self.life) if e["event"] == "start" and e["rank"] == rank)

    def last_step(self) -> int:
        return max((e["step"] for e in self.events(self.life) if e["event"] == "step"), default=0)

    def gone(self, seconds: float = 60.0) -> float:
        """Waits until no process of this start is left; returns how long that took."""
        assert self.process is not None
        start = time.monotonic()
        while living := session_members(self.process.pid):
            self.process.poll()
            assert time.monotonic() - start < seconds, f"{self.name}: {living} outlive the kill by {seconds:.0f} s"
            time.sleep(0.02)
        return time.monotonic() - start

    def finish(self) -> None:
        """Starts, without a kill, until the command says it is done."""
        for _ in range(3):
            self.start()
            assert self.process is not None
            code = self.process.wait(20 * PATIENCE)
            self.gone()
            if code == 0:
                return
        raise AssertionError(f"{self.name}: ended with {code}\n{self.tail()}")

    def tail(self) -> str:
        return self.log.read_text()[-3000:]


def session_members(session: int) -> list[int]:
    """Processes, zombies apart, of the session that a start opened."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            fields = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile; a glob for the files would look again, and raise
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(name))
    return found


def children(pid: int) -> list[int]:
    """Loader workers: the children that run the trainer's own program."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    program = Path(f"/proc/{pid}/cmdline").read_bytes()
    return [int(c) for c in listed if Path(f"/proc/{c}/cmdline").read_bytes() == program]


def kill(training: Training, kind: str, rng: random.Random) -> bool:
    """Starts the training and kills it in the way `kind` says; False where it was done before."""
    training.start(launcher=kind == "launcher")
    process = training.process
    assert process is not None
    if kind == "start":
        time.sleep(rng.uniform(0.2, 15.0))
        ready = process.poll() is None
    elif kind == "write":  # the first file's sync, or the manifest's
        ready = training.wait_for("write", rng.randint(1, 4))
        time.sleep(rng.uniform(0, SLOW))
    elif kind == "eval":
        ready = training.wait_for("eval", rng.randint(1, 3))
        time.sleep(rng.uniform(0, SLOW))
    else:
        ready = training.wait_for("step", training.ranks * rng.randint(1, 16))
        time.sleep(rng.uniform(0, 0.05))
    if not ready or process.poll() is not None:
        training.gone()
        return False
    step = training.last_step()
    try:
        if kind == "start":
            os.killpg(process.pid, signal.SIGKILL)
        elif kind == "launcher" or kind == "SIGTERM":
            os.kill(process.pid, signal.SIGKILL if kind == "launcher" else signal.SIGTERM)
        elif kind == "SIGINT":
            os.killpg(process.pid, signal.SIGINT)
        elif kind == "worker":
            os.kill(rng.choice(children(training.pid(rng.randrange(training.ranks)))), signal.SIGKILL)
        else:
            os.kill(training.pid(training.ranks - 1 if kind == "rank" else 0), signal.SIGKILL)
    except (ProcessLookupError, FileNotFoundError, IndexError):  # it ended in this moment
        training.gone()
        return False
    seconds = training.gone()
    code = process.wait()
    training.kills.append(Kill(kind, training.life, step, code, seconds))
    if kind in ("SIGTERM", "SIGINT"):
        done = "done:" in training.log.read_text().rpartition("--- start")[2]
        assert done or code == STOPPED, (
            f"{kind} at step {step} gave exit code {code}\n{training.log.read_text()[-3000:]}"
        )
    return True


def weights_digest(folder: Path) -> str:
    """sha256 of the newest checkpoint's weights."""
    state = full_content(read_checkpoint(sorted(folder.glob("step-*"))[-1]))["model"]
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + state[name].numpy().tobytes())
    return digest.hexdigest()


def losses(folder: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]


def samples(events: list[dict]) -> dict[int, list[str]]:
    """Hashes of the samples of each step, as the last start that took the step had them."""
    taken: dict[int, tuple[int, list[str]]] = {}
    for event in events:
        if event["event"] == "step":
            life, rows = taken.get(event["step"], (0, []))
            fresh = event["life"] > life
            taken[event["step"]] = (event["life"], [*([] if fresh else rows), *event["rows"]])
    return {step: sorted(rows) for step, (_, rows) in sorted(taken.items())}


def compare(training: Training, reference: Training) -> None:
    """AssertionError with what differs between a killed training and the uninterrupted one."""
    mine, other = training.folder / training.name, reference.folder / reference.name
    assert losses(mine) == losses(other), f"{training.name}: losses differ, or a step is lost or doubled"
    assert samples(training.events()) == samples(reference.events()), f"{training.name}: the sequences of a step differ"
    assert weights_digest(mine) == weights_digest(other), f"{training.name}: final weights differ"


def check_epochs(taken: dict[int, list[str]], steps: int, epoch_steps: int) -> None:
    """No sample comes twice within an epoch."""
    assert list(taken) == list(range(1, steps + 1))
    for start in range(1, steps + 1, epoch_steps):
        rows = [row for step in range(start, min(start + epoch_steps, steps + 1)) for row in taken[step]]
        assert len(rows) == len(set(rows)), f"a sequence was repeated in the epoch that begins at step {start}"


def left_behind(folder: Path) -> list[str]:
    """Shared memory over this folder's data, and temporary files; a launcher that was killed leaves an own folder."""
    found = []
    for path in Path("/dev/shm").glob("[0-9]*_locals"):
        if str(folder).encode() in path.read_bytes():
            found.append(str(path))
    for record in folder.glob("*/run.json"):
        found += glob.glob(f"/tmp/moe-{json.loads(record.read_text())['id']}-*")
    for path in (folder / "tmp").rglob("*"):
        of_launcher = path.relative_to(folder / "tmp").parts[0].startswith("tmp")
        if not of_launcher:
            found.append(str(path))
    return found


def prepare(folder: Path, steps: int, documents: int) -> int:
    """Text, tokenizer, shards and configuration; returns the steps of an epoch."""
    (folder / "tmp").mkdir(parents=True)
    text = write_text(folder / "text.jsonl", documents)
    write_tokenizer(folder / "tokenizer", text)
    command = [sys.executable, str(ROOT / "convert/fineweb_to_mds.py"), "--dataset", str(text)]
    command += ["--tokenizer", str(folder / "tokenizer"), "--seq-len", "32", "--val-fraction", "0.05"]
    subprocess.run([*command, "--out", str(folder / "data"), "--workers", "1"], check=True, capture_output=True)
    settings = tiny_config(
        folder,
        max_duration=f"{steps}ba",
        scheduler={"t_warmup": "10ba"},
        global_train_batch_size=16,
        num_workers=1,
        save_interval="7ba",
        eval_interval="12ba",
        save_folder=str(folder / "${run_name}"),
    )
    write_config(folder / "chaos.yaml", settings)
    return json.loads((folder / "data/meta.json").read_text())["samples"]["train"] // 16


Kinds = dict[tuple[int, bool], list[str]]


def run(
    folder: Path, kinds: Kinds, *, steps: int, seed: int, documents: int = 400, new: bool = True, report=print
) -> list[Kill]:
    """`kinds`: how to kill trainings of that many ranks, which share the model or not, one kill after the other.

    Without `new` starts are forked, but for that of the first uninterrupted one, which killed ones are compared with.

    Raises AssertionError where anything differs or is left.
    """
    epoch_steps = prepare(folder, steps, documents)
    done: list[Kill] = []
    for (ranks, sharded), planned in kinds.items():
        rng, name = random.Random(f"{seed}/{ranks}"), f"{ranks}{'-sharded' * sharded}"
        reference = Training(folder, f"whole-{name}", ranks, sharded, new or not done)
        reference.finish()
        check_epochs(samples(reference.events()), steps, epoch_steps)
        report(f"{ranks} rank(s){', FSDP2' * sharded}: uninterrupted, {steps} steps, {steps / epoch_steps:.1f} epochs")
        killed, part = 0, 0
        while killed < len(planned):  # a training that is done leaves the rest of the kills to another
            part += 1
            training = Training(folder, f"killed-{name}-{part}", ranks, sharded, new)
            while killed < len(planned) and kill(training, planned[killed], rng):
                killed += 1
                last = training.kills[-1]
                report(
                    f"  kill {len(done) + len(training.kills):>2}: {last.kind:<8} at step {last.step:>3}, exit code "
                    f"{last.code}, gone after {last.seconds:.1f} s"
                )
            training.finish()
            compare(training, reference)
            done += training.kills
            report(
                f"{ranks} rank(s){', FSDP2' * sharded}: killed {len(training.kills)} times: weights, losses and "
                "sequences identical"
            )
    left = left_behind(folder)
    assert not left, f"left behind: {left}"
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--folder", type=Path, required=True, help="a folder that is not there yet")
    flags = parser.parse_args()
    start = time.monotonic()
    two = flags.kills // 5
    kinds = {
        (1, False): list(islice(cycle(KINDS), flags.kills - 2 * two)),
        (2, False): list(islice(cycle(KINDS_OF_TWO), two)),
        (2, True): list(islice(cycle(KINDS_OF_SHARDED), two)),
    }
    done = run(flags.folder.resolve(), kinds, steps=flags.steps, seed=flags.seed, report=partial(print, flush=True))
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(kill.kind for kill in done).items()))
    print(
        f"{len(done)} of {flags.kills} kills ({counts}): each training resumed by itself and ended with the weights,\n"
        f"losses and sequences of the uninterrupted one. Nothing was left. "
        f"{(time.monotonic() - start) / 60:.0f} minutes"
    )


if __name__ == "__main__":
    main()
