"""The pages that benchmarks/gpu.py makes of its records: what is long, and what came to nothing."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from gpu_stages import page, record


def found(*values: object, kind: str = "figure", state: str = "done") -> record.Record:
    made = record.new_record("kernels", {"dry": False, "card": "H", "torch": "2", "date": "2026-01-01"})
    rest = {"unit": "", "expected": None, "source": "", "kind": kind, "met": False, "top": False}
    made["figures"] = [{"name": f"figure {number}", "value": value, **rest} for number, value in enumerate(values)]
    return {**made, "state": state}


def test_a_long_text_stands_below_the_table() -> None:
    long = "embed, " + "attn.q_proj (12 layers, the last 11), " * 5
    text = page.section(["kernels"], {"kernels": found(1.5, long, "no", long)})
    table, _, below = text.partition("| figure 2 | no |  |  |\n\n")
    assert "| figure 0 | 1.5 |  |  |\n" in table and "embed" not in table
    assert below == f"- figure 1: {long}\n- figure 3: {long}"
    assert page.section(["kernels"], {"kernels": found(long, kind="check")}).endswith(f"s.\n\n- figure 0 (NO): {long}")


def test_a_stage_that_was_cut_short_before_it_found_anything_has_no_empty_table() -> None:
    text = page.section(["kernels"], {"kernels": found(state="running")})
    assert text.endswith(", 0 s; cut short before its first figure.") and "|" not in text
    assert "; cut short, so what follows is not all." in page.section(
        ["kernels"], {"kernels": found(1, state="running")}
    )
