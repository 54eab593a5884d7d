"""What our step is compared with on a GPU: benchmarks/step.py, its worker, and the stage `peers`."""

import importlib.util
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import step
import step_worker
from competitor import Competitor, TooSlow
from gpu_stages import peers, record
from gpu_stages.run import Run

SHAPE = {
    "vocab_size": 97, "d_model": 32, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "head_dim": 16, "n_experts": 4,
    "top_k": 2, "expert_hidden": 16,
}  # fmt: skip


def test_the_peers_experts_compute_in_bf16(monkeypatch) -> None:
    """Version 5's grouped products take their weights' dtype, whatever autocast says; version 4 has a Linear each."""
    seen = []
    for name in ("grouped_mm", "linear"):
        plain = getattr(F, name, None)

        def watched(a, b, *more, plain=plain, **settings):
            seen.append((a.dtype, b.dtype))
            return plain(a, b, *more, **settings)

        if plain is not None:
            monkeypatch.setattr(F, name, watched)
    spec = {"kind": "peer", "shape": SHAPE, "batch": 2, "seq_len": 16, "bf16": True}
    note, one_step = step_worker.training(spec)
    one_step()
    assert "bf16 weights" in note and len(seen) > 5
    assert set(seen) == {(torch.bfloat16, torch.bfloat16)}


def test_on_a_gpu_every_peer_has_bf16_weights(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = step.opponents({"shape": SHAPE, "compile": True})
    theirs = [spec for spec, _ in found.values() if spec["kind"] == "peer"]
    assert theirs and all(spec["bf16"] for spec in theirs)


def test_a_competitor_has_the_callers_packages_and_its_last_words_are_kept(monkeypatch, tmp_path, capfd) -> None:
    """The stand-in for a package that lies only there is a `torch` that cannot be loaded: a start in no time."""
    (tmp_path / "torch.py").write_text("raise ImportError('found on the caller\\'s path')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(SystemExit, match="ended early: ImportError: found on the caller's path"):
        Competitor({"kind": "matmul", "threads": 1})
    assert "Traceback" in capfd.readouterr().err, "in the log as well"
    other = tmp_path / "another-python"
    other.write_text('#!/bin/sh\necho "\\"$PYTHONPATH\\"" | sed s/^/@/\n')
    other.chmod(0o755)
    alone = Competitor({"kind": "matmul"}, str(other))
    alone.process.wait()
    assert alone.note == str(step.ROOT), "packages of one Python are not another's"


@pytest.fixture
def compare(tmp_path, monkeypatch):
    """compare(seconds, left): the stage with stand-ins for the processes, as on a card where Liger is installed.

    seconds: of their step of 32 sequences, by how they run, where ours takes 1; ends: early; never: answers; too large:
    with 32. left: until the stage's end.
    """

    def run_with(seconds: dict[str, float | str], left: float = 480.0) -> tuple[record.Record, list[str]]:
        begun: list[str] = []
        alive: list[object] = []

        class Fake:
            def __init__(self, spec, limit) -> None:
                assert 0 < limit < left, "the stage's end comes after it"
                self.taken: float | str = 1.0
                self.note = "transformers 5.24.0"
                self.spec = spec
                if spec["kind"] == "peer":
                    more = {key: spec[key] for key in ("liger", "compile", "bf16") if key in spec}
                    begun.append(next(how for how, settings in peers.OTHERS.items() if settings == more))
                    self.taken = seconds[begun[-1]]
                    if self.taken == "never":
                        raise TooSlow("error: worker was ended: no answer within 9 s")
                    if self.taken == "too large" and spec["batch"] == peers.BATCH:
                        raise SystemExit("error: worker ended early: torch.OutOfMemoryError: CUDA out of memory.")
                    if self.taken == "ends":
                        raise SystemExit("error: worker ended early: no such module")
                alive.append(self)

            def seconds(self, turn):
                return self.spec["batch"] / peers.BATCH * (1.5 if self.taken == "too large" else self.taken)

            def alive(self):
                return True

            def stop(self):
                alive.remove(self)
                return 10**9

        monkeypatch.setattr(peers, "Competitor", Fake)
        monkeypatch.setattr(peers, "shape_of", lambda run, name: (SHAPE, 16))
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
        found = record.new_record("peers", {"dry": False, "card": "H", "torch": "2", "date": "2026-01-01"})
        deadline = time.monotonic() + left
        try:
            peers.peers(Run(record=found, out=tmp_path, work=tmp_path, pack=tmp_path, dry=False, deadline=deadline))
        finally:
            assert not alive, "all are stopped"
        return found, begun

    return run_with


def goals(found: record.Record) -> list[tuple[str, float, bool]]:
    return [(row["name"], row["value"], row["met"]) for row in found["figures"] if row["kind"] == "goal"]


def test_liger_comes_first_and_the_goal_is_against_the_fastest(compare) -> None:
    found, begun = compare({"Liger": 1.6, "compiled": 1.3, "eager": 2.0, "eager, autocast": 9.0})
    assert begun == ["Liger", "eager"] * 2 + ["eager, autocast", "compiled"], "what may never end comes last"
    ((name, value, met),) = goals(found)
    assert "compiled" in name and value == 1.3 and met is False
    assert goals(compare({"Liger": 1.5, "compiled": 1.6, "eager": 2.0, "eager, autocast": 9.0})[0])[0][2] is True


def test_a_comparison_that_did_not_come_about_fails_a_check(compare) -> None:
    found, _ = compare({"Liger": "ends", "compiled": 1.6, "eager": 2.0, "eager, autocast": 9.0})
    assert record.faults(found) == ["500m, Liger: compared", "fine, Liger: compared"]
    assert "no such module" in next(row["value"] for row in found["figures"] if row["name"] == "500m, Liger: compared")
    with pytest.raises(RuntimeError, match="nothing could be compared"):  # not done: the next call does it again
        compare(dict.fromkeys(peers.OTHERS, "ends"))


def test_no_comparison_begins_that_would_run_into_the_stages_end(compare) -> None:
    with pytest.raises(RuntimeError, match="nothing"):
        compare(dict.fromkeys(peers.OTHERS, 1.5), left=60)


def test_what_never_ends_is_a_figure_and_fails_no_check(compare) -> None:
    found, _ = compare({"Liger": 1.6, "compiled": "never", "eager": 2.0, "eager, autocast": 9.0})
    assert not record.faults(found) and goals(found)[0][1] == 1.6
    said = next(row["value"] for row in found["figures"] if row["name"] == "500m, compiled: compared")
    assert said == "no: error: worker was ended: no answer within 9 s"


def test_what_does_not_fit_is_taken_half_as_large_and_a_ratio_is_by_token(compare) -> None:
    found, begun = compare({"Liger": 1.6, "compiled": 3.0, "eager": "too large", "eager, autocast": 9.0})
    rows = {row["name"]: row for row in found["figures"]}
    assert not record.faults(found) and begun.count("eager") == 4, "two shapes, twice each"
    assert rows["500m, eager: microbatch"]["value"] == 16 and rows["500m, eager: microbatch"]["expected"] == 32
    assert rows["500m, eager: times as fast"]["value"] == 1.5
    assert rows["500m, eager: theirs, microbatch 16"]["unit"] == "tokens/s"
    assert goals(found)[0][1] == 1.5


def worker(tmp_path: Path, lines: str) -> str:
    """A stand-in for the Python that runs benchmarks/step_worker.py."""
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)
    return str(path)


def test_a_competitor_that_does_not_answer_is_ended_at_its_limit(tmp_path) -> None:
    """Also where a process of its own holds the pipe open, as the compiler's do."""
    python = worker(tmp_path, "sleep 7 & echo $$ > $0.pid; echo not an answer; printf @; wait")
    start = time.monotonic()
    with pytest.raises(TooSlow, match=r"step_worker.py \(peer\) was ended: no answer within 0 s"):
        Competitor({"kind": "peer"}, python, limit=0.4)
    assert time.monotonic() - start < 5
    assert not Path(f"/proc/{(tmp_path / 'python.pid').read_text().strip()}").exists(), "ended and waited for"
    steps = "echo '@\"note\"'; read a; echo; echo @0.5; echo @0.25; read a; read b; exec sleep 60"
    slow = Competitor({"kind": "peer"}, worker(tmp_path, steps), limit=2.0)
    assert slow.note == "note" and slow.seconds(0.75) == 0.375, "two answers in one piece"
    slow.limit = 0.2
    assert slow.stop() is None and not slow.alive()


def test_what_a_competitor_ended_with_is_found_before_what_its_libraries_say_last(tmp_path) -> None:
    said = "echo 'torch.OutOfMemoryError: CUDA out of memory. Tried' >&2; echo 'a worker is gone' >&2"
    with pytest.raises(SystemExit, match=r"ended early: torch\.OutOfMemoryError: CUDA out of memory"):
        Competitor({"kind": "peer"}, worker(tmp_path, said))
    ended = Competitor({"kind": "peer"}, worker(tmp_path, "echo '@1'; exec >&-; echo such an end >&2"))
    ended.process.wait()
    with pytest.raises(SystemExit, match="ended early: such an end"):
        ended.seconds(1.0)
