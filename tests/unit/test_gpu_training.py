"""The GPU's stages that train, with stand-ins for the runs: what they look at, and what they say of it."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from gpu_stages import record, smoke, train, training
from gpu_stages.run import Run

TRAINER = """
import pathlib, time
folder = pathlib.Path({folder!r})
rows = open(folder / "metrics.jsonl", "w", buffering=1)
for step in range(1, 18):
    rows.write('{{"step": %d, "train/loss": 1.0}}\\n' % step)
time.sleep(0.5)  # a fast card logs steps while the checkpoint is written
(folder / "step-00000010").mkdir()
(folder / "step-00000010/manifest.json").touch()
time.sleep(60)
"""


@pytest.fixture
def run(tmp_path) -> Run:
    machine = {"dry": True, "card": "CPU", "torch": "2", "date": "2026-01-01"}
    found = record.new_record("train", machine)
    deadline = time.monotonic() + 60
    return Run(record=found, out=tmp_path, work=tmp_path, pack=tmp_path, dry=True, deadline=deadline)


def figures(run: Run) -> dict[str, object]:
    return {figure["name"]: figure["value"] for figure in run.record["figures"]}


def test_a_run_is_killed_when_there_is_a_checkpoint_to_resume_from(run, tmp_path, monkeypatch) -> None:
    """Without it the next start begins at step 0, and every check on the losses holds all the same."""

    def start(*_, **__):
        return subprocess.Popen([sys.executable, "-c", TRAINER.format(folder=str(tmp_path))])

    monkeypatch.setattr(training, "start_training", start)
    code = training.train_and_signal(run, "any", [], folder=tmp_path, step=15, number=training.KILL, saved=10)
    assert code == -training.KILL and training.is_saved(tmp_path, 10)


def play(
    monkeypatch, resumes: list[int], last_losses: list[float], cut: dict[int, float] | None = None
) -> list[list[str]]:
    """Stand-ins for the runs of `train`: their events, and the last loss of each that trains to its end. The settings
    that each was given. cut: other losses of the interrupted run, by step.
    """
    given: list[list[str]] = []

    def leave(settings: list[str], loss: float = 3.0) -> None:
        given.append(settings)
        folder = Path(next(s.partition("=")[2] for s in settings if s.startswith("save_folder=")))
        (folder / "step-00000030").mkdir(parents=True, exist_ok=True)
        (folder / "step-00000030/manifest.json").touch()
        losses = dict.fromkeys(range(1, 31), 3.0) | {30: loss} | ((cut or {}) if folder.name == "cut" else {})
        row = {"throughput/tokens_per_sec": 1.0, "throughput/data_wait": 0.0}
        rows = [{"step": step, "train/loss": loss, **row} for step, loss in losses.items()]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        events = [{"event": "start", "step": 0}, *({"event": "resume", "step": step} for step in resumes)]
        (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
        (folder / "run.json").write_text(json.dumps({"microbatch": {"size": 4}}))

    def to_end(run, yaml, settings, **_) -> int:
        leave(settings, last_losses.pop(0))
        return 0

    def and_signal(run, yaml, settings, *, number, **_) -> int:
        leave(settings)
        return 75 if number == training.TERM else -number

    monkeypatch.setattr(train, "train_to_end", to_end)
    monkeypatch.setattr(train, "train_and_signal", and_signal)
    return given


def test_a_resume_from_the_checkpoints_is_what_is_compared(run, monkeypatch) -> None:
    (run.work / "train.log").write_text("".join(f"line {number}\n" for number in range(50)))
    given = play(monkeypatch, [10, 30], [3.0, 3.0])
    train.train(run)
    assert not record.faults(run.record) and figures(run)["steps whose loss has other bits"] == 0
    assert run.record["console"].splitlines() == [f"line {number}" for number in range(30, 50)]
    whole, *cut = given
    size = "device_train_microbatch_size=4"
    assert size not in whole and all(size in settings for settings in cut), "searched once"


@pytest.mark.parametrize("resumes", [[30], [0, 30], []])
def test_a_run_that_began_anew_after_the_kill_fails_its_check(run, monkeypatch, resumes) -> None:
    play(monkeypatch, resumes, [3.0, 3.0])
    train.train(run)
    assert "after the kill it resumed from step" in record.faults(run.record)


@pytest.mark.parametrize(("cut", "first"), [({5: 3.01}, 5), ({20: 3.0001}, 20), ({20: math.nan}, 20)])
def test_a_loss_of_other_bits_fails_and_the_first_such_step_is_named(run, monkeypatch, cut, first) -> None:
    play(monkeypatch, [10, 30], [3.0, 3.0], cut=cut)
    train.train(run)
    assert record.faults(run.record) == ["steps whose loss has other bits"]
    assert figures(run)["the first such step"] == first


PRINTS = """
import time
print("moe: reading", "starting ...", sep="\\n", flush=True)
time.sleep(0.4)
print("step 1/2  50%", flush=True)
print("step 2/2  100%", "done: 2 steps", sep="\\n", flush=True)
raise SystemExit({code})
"""


def test_what_the_console_says_has_its_time(run, monkeypatch) -> None:
    (run.work / "train.log").write_text("starting ... of the run before\nstep 7/8\n")

    def start(run, *_, **__):
        with open(run.work / "train.log", "ab") as log:
            return subprocess.Popen([sys.executable, "-c", PRINTS.format(code=code)], stdout=log)

    monkeypatch.setattr(training, "start_training", start)
    code = 0
    smoke._train(run, [], "run")
    found = figures(run)
    names = [f"run: from the start to: {smoke.MARKS[mark]}" for mark in ("starting", "step ", "done")]
    assert list(found) == [*names, "run: from the start to the end"]
    assert found[names[0]] + 0.3 < found[names[1]] <= found[names[2]] <= list(found.values())[-1]
    code = 3
    with pytest.raises(RuntimeError, match="exit code 3"):
        smoke._train(run, [], "again")
