"""The GPU's stages that train, with stand-ins for the runs: what they look at, and what they say of it."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from gpu_stages import record, resume, smoke, train, training
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


AGAIN = """
import pathlib, signal, time
time.sleep(0.3)  # it imports, and would die of the signal
signal.signal(signal.SIGTERM, lambda *_: exit(75))
pathlib.Path({path!r}).write_text('{{"step": 24, "train/loss": 1.0}}\\n')
time.sleep(60)
"""


def test_what_the_start_before_has_logged_is_not_taken_for_this_ones(run, tmp_path, monkeypatch) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 30, "train/loss": 1.0}\n')

    def start(*_, **__):
        return subprocess.Popen([sys.executable, "-c", AGAIN.format(path=str(path))])

    monkeypatch.setattr(training, "start_training", start)
    assert training.train_and_signal(run, "any", [], folder=tmp_path, step=24, number=training.TERM) == 75


def play(monkeypatch, resumes: list[int], cut: dict[int, float] | None = None) -> dict[str, list[list[str]]]:
    """Stand-ins for the runs of `resume`: the settings that each start was given, by run. cut: other losses of the
    interrupted run, by step.
    """
    given: dict[str, list[list[str]]] = {"whole": [], "cut": []}

    def leave(settings: list[str]) -> None:
        folder = Path(next(s.partition("=")[2] for s in settings if s.startswith("save_folder=")))
        given[folder.name].append(settings)
        (folder / "step-00000040").mkdir(parents=True, exist_ok=True)
        (folder / "step-00000040/manifest.json").touch()
        losses = dict.fromkeys(range(1, 41), 3.0) | ((cut or {}) if folder.name == "cut" else {})
        rows = [{"step": step, "train/loss": loss} for step, loss in losses.items()]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        events = [{"event": "start", "step": 0}, *({"event": "resume", "step": step} for step in resumes)]
        (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))

    def to_end(run, yaml, settings, **_) -> int:
        leave(settings)
        return 0

    def and_signal(run, yaml, settings, *, number, **_) -> int:
        leave(settings)
        return 75 if number == training.TERM else -number

    monkeypatch.setattr(resume, "train_to_end", to_end)
    monkeypatch.setattr(resume, "train_and_signal", and_signal)
    return given


def test_an_interrupted_run_is_compared_with_one_of_the_same_settings(run, monkeypatch) -> None:
    given = play(monkeypatch, [10, 40])
    resume.resume(run)
    assert not record.faults(run.record) and figures(run)["steps whose loss has other bits"] == 0
    assert (len(given["whole"]), len(given["cut"])) == (1, 3), "killed, stopped, ended"
    own = ("save_folder=", "run_name=")
    kept = {tuple(s for s in settings if not s.startswith(own)) for runs in given.values() for settings in runs}
    assert len(kept) == 1


@pytest.mark.parametrize("resumes", [[40], [0, 40], []])
def test_a_run_that_began_anew_after_the_kill_fails_its_check(run, monkeypatch, resumes) -> None:
    play(monkeypatch, resumes)
    resume.resume(run)
    assert "after the kill it resumed from step" in record.faults(run.record)


def test_where_time_is_short_the_run_is_killed_and_not_stopped_too(run, monkeypatch) -> None:
    given = play(monkeypatch, [10])
    run.dry = False
    resume.resume(run)
    assert len(given["cut"]) == 2 and not record.faults(run.record)
    assert figures(run)["SIGTERM: left out"].startswith("only ")


@pytest.mark.parametrize(("cut", "first"), [({5: 3.01}, 5), ({15: 3.0001}, 15), ({15: math.nan}, 15)])
def test_a_loss_of_other_bits_fails_and_the_first_such_step_is_named(run, monkeypatch, cut, first) -> None:
    play(monkeypatch, [10, 40], cut=cut)
    resume.resume(run)
    assert record.faults(run.record) == ["steps whose loss has other bits"]
    assert figures(run)["the first such step"] == first


def test_what_a_save_holds_up_is_not_what_the_last_one_waits_for(run, monkeypatch) -> None:
    def to_end(run, yaml, settings, **_) -> int:
        folder = run.work / "run"
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps({"microbatch": {"size": 4}}))
        blocked = {10: 0.25, 20: 0.5, 30: 6.0}
        rows = [{"step": n, "throughput/tokens_per_sec": 1.0 * n, "throughput/data_wait": 0.0} for n in range(1, 31)]
        rows = [
            row | ({"checkpoint/blocked_seconds": blocked[n]} if (n := row["step"]) in blocked else {}) for row in rows
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (run.work / "train.log").write_text("".join(f"line {number}\n" for number in range(50)))
        return 0

    monkeypatch.setattr(train, "train_to_end", to_end)
    train.train(run)
    found = figures(run)
    assert found["a save holds up training"] == 0.5
    assert found["the last save, which waits for what it writes"] == 6.0 and found["tokens/s, second half"] == 23.0
    assert run.record["console"].splitlines() == [f"line {number}" for number in range(30, 50)]


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
