"""The GPU's question whether a computation has the same bits again: what it looks at, and what it reports."""

import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from gpu_stages import record, same_bits
from gpu_stages.run import Run


@pytest.fixture
def run(tmp_path) -> Run:
    found = record.new_record("kernels", {"dry": True, "card": "CPU", "torch": "2", "date": "2026-01-01"})
    return Run(record=found, out=tmp_path, work=tmp_path, pack=tmp_path, dry=True, deadline=time.monotonic() + 60)


def figures(run: Run) -> dict[str, object]:
    return {figure["name"]: figure["value"] for figure in run.record["figures"]}


def test_what_differs_is_named_by_group_with_its_last_layer(run) -> None:
    calls = []

    def work() -> dict[str, torch.Tensor]:
        calls.append(len(calls))
        names = ["embed.weight", "norm.weight", *(f"blocks.{n}.attn.{p}_proj.weight" for n in range(3) for p in "qk")]
        found = {name: torch.ones(3) for name in names}
        if len(calls) == 2:
            for name in ("embed.weight", "blocks.0.attn.q_proj.weight", "blocks.1.attn.q_proj.weight"):
                found[name][1] += 1e-6
        return found

    same_bits._report(run, "full model", work)
    assert figures(run) == {
        "same bits again: full model": "no",
        "same bits again: full model: what differs": "embed, attn.q_proj (2 layers, the last 1)",
    }
    same_bits._report(run, "again", lambda: {"x": torch.ones(2)})
    assert figures(run)["same bits again: again"] == "yes"


def test_an_operation_without_a_deterministic_algorithm_is_reported_and_the_flags_are_as_before(run) -> None:
    seen = []

    def work() -> dict[str, torch.Tensor]:
        warns = torch.is_deterministic_algorithms_warn_only_enabled()
        filled = torch.utils.deterministic.fill_uninitialized_memory
        seen.append((torch.are_deterministic_algorithms_enabled(), warns, filled))
        raise RuntimeError("such_kernel does not have a deterministic implementation\nsecond line")

    same_bits._report(run, "such", work, deterministic=True)
    assert seen == [(True, False, False)], "attention's backward heeds it without warn_only alone"
    assert torch.utils.deterministic.fill_uninitialized_memory and not torch.are_deterministic_algorithms_enabled()
    (said,) = figures(run).values()
    assert said == "does not run: such_kernel does not have a deterministic implementation"
    assert not record.faults(run.record)
    same_bits._report(run, "full model", work, deterministic=True)
    assert record.faults(run.record) == ["same bits again, deterministic: full model"], "what a run promises"


def test_attention_is_asked_with_documents_that_have_many_blocks_of_keys(run, monkeypatch) -> None:
    """Of two blocks of 128 keys the atomic additions commute: the answer is yes, whatever the kernel does."""
    given = []

    def attend(q, k, v, packed, *, grouped):
        given.append(packed)
        return q + (k.sum() + v.sum())

    monkeypatch.setattr(same_bits, "attend_packed", attend)
    assert not same_bits.differing(same_bits.varlen_attention(run, torch.randn), 1)
    lengths = given[0].starts_N.diff()
    assert sorted(lengths[lengths > 0].tolist()) == [1000, 1048, 2048]
