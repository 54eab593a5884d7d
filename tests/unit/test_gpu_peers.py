"""What our step is compared with on a GPU: benchmarks/step.py, its worker, and the stage `peers`."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import step
import step_worker

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
        step.Competitor({"kind": "matmul", "threads": 1})
    assert "Traceback" in capfd.readouterr().err, "in the log as well"
