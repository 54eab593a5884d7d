"""What benchmarks/gpu.py asks `moe estimate` for, which the allocator's peak is held against."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from gpu_stages import memory, step


@pytest.mark.parametrize("compiled", [True, False])
def test_a_compiled_model_is_asked_for_as_one(monkeypatch, compiled) -> None:
    def knows(compiled: bool = False, **settings: object) -> dict[str, object]:
        return {"compiled": compiled, **settings}

    def does_not(*, seq_len: int, microbatch: int, gpu: bool, bf16: bool) -> int:
        return microbatch

    monkeypatch.setattr(step, "Step", knows)
    found = step.expected_memory({"d_model": 32}, 64, 2, compiled=compiled, bf16=False)
    assert found == {"compiled": compiled, "d_model": 32, "seq_len": 64, "microbatch": 2, "gpu": True, "bf16": False}
    monkeypatch.setattr(step, "Step", does_not)
    assert step.expected_memory({}, 64, 2, compiled=compiled) == 2


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
