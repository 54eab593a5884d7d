"""benchmarks/gpu.py: stages that fail, hang or are killed, what is done again, and the pages that are made of records.

The dry run's stages run here too, in this process, so that none can rot: what they measure means nothing.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import gpu
from gpu_stages import page, record
from gpu_stages.pack import make_tiny_pack
from gpu_stages.run import Run
from gpu_stages.stages import GROUP_SECONDS, STAGES, function_of, limit_of

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = Path(__file__).parent / "gpu_dry_run"  # records of a dry run on a CPU: no GPU's figures
MACHINE = {"dry": True, "card": "CPU", "torch": "2", "date": "2026-01-01"}
FAKES = """
import os, sys, time
sys.path[:0] = [{benchmarks!r}, {root!r}]
import gpu
from gpu_stages import stages
names = {{"good": None, "raises": None, "dies": None, "hangs": None}}
for name in names:
    stages.STAGES[name] = stages.Stage(1, 60)

def good(run):
    run.figure("speed", 2.0, "m/s", expected=1.0, source="a guess", top=True)

def raises(run):
    run.figure("before", 1)
    raise ValueError("no such kernel")

def dies(run):
    run.figure("before", 1)
    os.kill(os.getpid(), 9)

def hangs(run):
    run.figure("before", 1)
    time.sleep(0 if os.path.exists({flag!r}) else 600)

gpu.limit_of = lambda name, *_: 3 if name == "hangs" else 60
gpu.function_of = lambda name: globals()[name]
gpu.__file__ = __file__
gpu.LEAST_SECONDS = 0
gpu.make_tiny_pack = lambda folder: folder
gpu.WORK = gpu.Path({work!r})
sys.exit(gpu.main())
"""


@pytest.fixture
def command(tmp_path):
    """command(*arguments): the command with four stages of its own, started."""
    script = tmp_path / "fake.py"
    values = {"benchmarks": str(ROOT / "benchmarks"), "root": str(ROOT), "flag": str(tmp_path / "flag")}
    script.write_text(FAKES.format(work=str(tmp_path / "work"), **values))

    def start(*arguments):
        out = ["--out", str(tmp_path / "out"), "--dry", "--stage"]
        return subprocess.Popen(
            [sys.executable, str(script), *out, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    return start


def found_in(tmp_path, name):
    return record.read_record(tmp_path / "out", name)


def test_a_stage_that_fails_or_dies_or_hangs_takes_no_other_with_it(command, tmp_path) -> None:
    process = command("raises", "dies", "hangs", "good")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    states = {name: found_in(tmp_path, name)["state"] for name in ("raises", "dies", "hangs", "good")}
    assert states == {"raises": "failed", "dies": "failed", "hangs": "timed out", "good": "done"}, out
    assert "ValueError: no such kernel" in found_in(tmp_path, "raises")["fault"]
    assert "exit code -9" in found_in(tmp_path, "dies")["fault"]
    for name in ("raises", "dies", "hangs"):
        assert [figure["name"] for figure in found_in(tmp_path, name)["figures"]] == ["before"], "kept"
    table = out[out.index("stage     state") :]
    assert "speed 2 m/s" in table and table.rstrip().endswith("no figure means anything.")


def test_what_a_killed_command_leaves_is_gone_on_from(command, tmp_path) -> None:
    process = command("good", "hangs")
    deadline = time.monotonic() + 30
    while not (figures_of(tmp_path, "hangs") and (found_in(tmp_path, "good") or {}).get("state") == "done"):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    stage = [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and parent_of(pid) == process.pid]
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    assert stage
    while any(runs(pid) for pid in stage):  # it ends by itself: the GPU must be free again
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert found_in(tmp_path, "hangs")["state"] == "running"
    assert found_in(tmp_path, "good")["state"] == "done"
    made = (tmp_path / "out" / "good.json").stat().st_mtime_ns
    (tmp_path / "flag").touch()
    again = command("good", "hangs")
    out, _ = again.communicate(timeout=60)
    assert again.returncode == 0 and "good: done before" in out, out
    assert found_in(tmp_path, "hangs")["state"] == "done" and found_in(tmp_path, "hangs")["before"] is None
    assert (tmp_path / "out" / "good.json").stat().st_mtime_ns == made, "what is done is not done again"


def figures_of(tmp_path: Path, name: str) -> list:
    return (found_in(tmp_path, name) or {}).get("figures", [])


def runs(pid: int) -> bool:
    """Not gone, and no zombie either."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


def parent_of(pid: str) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return 0


def test_what_an_earlier_try_found_is_kept_until_the_stage_is_done(command, tmp_path) -> None:
    """A machine that goes just as a stage begins anew must not take with it what the first try measured."""
    first = {**record.new_record("raises", machine_here()), "state": "timed out", "fault": "too slow"}
    first["figures"] = [{"name": "measured", "value": 7, "unit": "", "expected": None, "source": "", "kind": "figure",
                         "met": None, "top": False}]  # fmt: skip
    record.write_record(tmp_path / "out", first)
    command("raises").communicate(timeout=60)
    second = found_in(tmp_path, "raises")
    assert [figure["name"] for figure in second["figures"]] == ["before"]
    assert second["before"]["figures"] == first["figures"] and second["before"]["fault"] == "too slow"
    shown = page.section(["raises"], {"raises": {**second, "dry": False}})
    assert "| before | 1 |" in shown and "From an earlier try" in shown and "| measured | 7 |" in shown
    third = record.new_record("raises", machine_here(), {**second, "figures": []})
    assert third["before"]["figures"] == first["figures"], "a try that found nothing does not replace one that did"
    assert record.new_record("raises", {**machine_here(), "card": "another"}, second)["before"] is None


def machine_here() -> record.Record:
    return gpu.machine_of(dry=True)


@pytest.mark.parametrize("change", [{"card": "H100"}, {"torch": "3"}, {"dry": False}, {"state": "failed"}])
def test_a_record_counts_as_done_on_its_own_card_and_torch_only(change) -> None:
    done = {**record.new_record("step", MACHINE), "state": "done"}
    assert record.is_done(done, MACHINE) and not record.is_done({**done, **change}, MACHINE)
    assert not record.is_done(None, MACHINE)


def test_a_record_that_was_cut_short_is_made_anew(tmp_path) -> None:
    record.write_record(tmp_path, record.new_record("step", MACHINE))
    assert record.read_record(tmp_path, "step") is not None
    (tmp_path / "step.json").write_text('{"stage": "step", "sta')
    assert record.read_record(tmp_path, "step") is None


def test_the_groups_fit_into_their_time_and_every_stage_has_a_function() -> None:
    for group in (1, 2, 3):
        assert sum(stage.seconds for stage in STAGES.values() if stage.group == group) <= GROUP_SECONDS == 8 * 60
    for name, stage in STAGES.items():
        assert limit_of(name, [], GROUP_SECONDS) == GROUP_SECONDS, "alone it has all the time there is"
        later = list(STAGES)[list(STAGES).index(name) + 1 :]
        assert limit_of(name, later, GROUP_SECONDS) >= stage.seconds
    quick = GROUP_SECONDS - 30  # the others took 30 seconds: what they left is the last one's
    assert limit_of("learn", [], quick) == quick
    assert limit_of("tune", ["learn", "step"], quick) == quick - STAGES["learn"].seconds
    assert {name for _, stages in page.PLACES.values() for name in stages} == set(STAGES)


def test_without_a_gpu_or_without_the_pack_it_says_what_to_do(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(gpu.InputError, match="--dry runs every stage"):
        gpu.main(["--stage", "machine"])
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho Some Card\n")
    smi.chmod(0o755)
    with pytest.raises(gpu.InputError, match=r"gpu_pack\.sh makes them"):
        gpu.main(["--stage", "machine", "--pack", str(tmp_path)])


def test_the_wheels_for_a_machine_without_a_network_are_of_the_versions_that_are_tested() -> None:
    lines = (ROOT / "benchmarks/gpu_wheels.txt").read_text().splitlines()
    packed = {line for line in lines if not line.startswith("#")}
    pins = (ROOT / "requirements/constraints.txt").read_text().splitlines()
    assert {"mosaicml", "mosaicml-streaming", "omegaconf"} < packed
    assert packed <= {line.partition("==")[0] for line in pins}


@pytest.fixture(scope="session")
def tiny_pack(tmp_path_factory):
    return make_tiny_pack(tmp_path_factory.mktemp("pack"))


@pytest.mark.parametrize("name", ["machine", "kernels", "step", "memory", "twin", "tune"])
def test_the_stage_runs_dry_and_its_checks_hold(name, tiny_pack, tmp_path) -> None:
    """Those that start no process of their own; `python benchmarks/gpu.py --dry` runs them all."""
    found = record.new_record(name, MACHINE)
    run = Run(record=found, out=tmp_path, work=tmp_path, pack=tiny_pack, dry=True, deadline=time.monotonic() + 300)
    function_of(name)(run)
    assert not record.faults(found) and len(found["figures"]) > 3
    assert record.read_record(tmp_path, name) == found, "written as it went"


def test_a_stage_that_trains_runs_dry(tiny_pack, tmp_path) -> None:
    found = record.new_record("learn", MACHINE)
    run = Run(record=found, out=tmp_path, work=tmp_path, pack=tiny_pack, dry=True, deadline=time.monotonic() + 300)
    function_of("learn")(run)
    assert not record.faults(found) and {figure["name"]: figure["value"] for figure in found["figures"]}["steps"] == 12


def test_the_pages_are_made_of_the_records_in_the_repository() -> None:
    records = record.read_records(ROOT / "benchmarks/results/gpu", list(STAGES))
    for name, (mark, stages) in page.PLACES.items():
        text = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert page.with_section(text, mark, page.section(stages, records)) == text, "run: benchmarks/gpu.py --write"


def test_a_recorded_set_makes_the_page_that_was_recorded_with_it() -> None:
    """The records are of a dry run: no GPU's figures, whatever the card is called in them."""
    records = {name: {**found, "dry": False} for name, found in record.read_records(FIXTURES, list(STAGES)).items()}
    assert set(records) == {"machine", "memory", "train"}
    assert all(found["card"] == "CPU (a dry run: no figure means anything)" for found in records.values())
    for name, (_, stages) in page.PLACES.items():
        assert page.section(stages, records) + "\n" == (FIXTURES / name).read_text(encoding="utf-8")


def test_a_dry_run_is_on_no_page(tmp_path) -> None:
    for path in FIXTURES.glob("*.json"):
        (tmp_path / path.name).write_text(path.read_text())
    assert all(found["dry"] for found in record.read_records(tmp_path, list(STAGES)).values())
    (tmp_path / "docs").mkdir()
    for name, (mark, _) in page.PLACES.items():
        (tmp_path / "docs" / name).write_text(f"before\n<!-- {mark} -->\nold\n<!-- /{mark} -->\nafter\n")
    page.write_pages(tmp_path, tmp_path / "docs")
    for name in page.PLACES:
        text = (tmp_path / "docs" / name).read_text()
        assert page.NOT_YET in text and "old" not in text and text.endswith("after\n")


def test_what_was_missed_is_told_on_the_page_and_in_the_table() -> None:
    def figure(name, kind, met, **more):
        row = {"name": name, "value": 0.31, "unit": "", "expected": 0.4, "source": "goal", "kind": kind, "met": met}
        return {**row, "top": True, **more}

    found = {**record.new_record("step", {**MACHINE, "dry": False, "card": "Some | Card"}), "state": "timed out"}
    found["figures"] = [figure("MFU", "goal", False), figure("exact", "check", False), figure("rate", "figure", None)]
    found["fault"] = "not done after 60 s\nthe last line that it said"  # as benchmarks/gpu.py notes it
    text = page.section(["step"], {"step": found})
    assert "| MFU | 0.31 | 0.4 (goal) | not met |" in text and "| exact | 0.31 | 0.4 (goal) | NO |" in text
    assert "timed out, so what follows is not all" in text and "It ended with: not done after 60 s" in text
    failed = {**found, "state": "failed", "fault": "Traceback\nValueError: no such thing"}
    assert "It ended with: ValueError: no such thing" in page.section(["step"], {"step": failed})
    shown = page.table({"step": found})
    assert "MFU 0.31 (not met)" in shown and "FAILED: exact" in shown and "the last line" in shown
    assert json.dumps(found)


def test_our_competitor_tells_the_model_how_many_documents_there_are(monkeypatch) -> None:
    """Without it varlen attention has room for one a token."""
    import step_worker

    from moe.model import Transformer
    from tests.tiny import SHAPE

    given = []
    plain = Transformer.forward

    def forward(self, *tokens, document_ends_BM=None):
        given.append(document_ends_BM)
        return plain(self, *tokens, document_ends_BM=document_ends_BM)

    monkeypatch.setattr(Transformer, "forward", forward)
    spec = {"kind": "ours", "shape": {"vocab_size": 97, **SHAPE}, "batch": 2, "seq_len": 64, "optimizer": "adamw"}
    step_worker.training(spec)[1]()
    assert given[0].shape == (2, 8) and (given[0] == 64).all()
