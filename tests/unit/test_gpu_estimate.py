"""What benchmarks/gpu.py asks `moe estimate` for, which the allocator's peak is held against."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from gpu_stages import memory, step


def test_a_compiled_model_is_asked_for_as_one(monkeypatch) -> None:
    monkeypatch.setattr(step, "Step", lambda **settings: settings)
    found = step.expected_memory({"d_model": 32}, 64, 2, compiled=True, bf16=False)
    assert found == {"compiled": True, "d_model": 32, "seq_len": 64, "microbatch": 2, "gpu": True, "bf16": False}


def test_both_microbatches_are_measured_eager_checkpointed_and_compiled(monkeypatch) -> None:
    class OnAGpu:
        dry = False

    seen = []
    monkeypatch.setattr(memory, "shape_of", lambda run, name: ({}, 2048))
    monkeypatch.setattr(memory, "_phases", lambda run, shape, seq_len, size, **how: seen.append((size, *how.items())))
    monkeypatch.setattr(memory, "_small", lambda *_: None)
    monkeypatch.setattr(memory, "_free", lambda run: None)
    memory.memory(OnAGpu())  # type: ignore[arg-type]
    eager = [(size, ("checkpointing", how)) for size in (4, 16) for how in (False, True)]
    assert seen == [*eager, (4, ("compiled", True)), (16, ("compiled", True))]
