"""The first losses of a tiny run, kept as a file: what changes them changes every run, and is to be known.

    {"losses": [...], "grad_norms": [...]}      first_losses.json beside this file: fp32, x86_64, torch 2.11

- The whole way: shards, order of samples, initial weights, schedule, clipping, Muon and AdamW, all three loss terms.
- The tolerance is that of machines, not of methods: other vector units and other torch versions sum in another order.
  It is ten times what was seen between AVX-512, AVX2 and neither, MKL held to SSE4, torch 2.7, 2.11 and 2.15: losses
  1e-7, norms 4e-7.
- Where a change is meant, the new numbers stand in the failed test's message.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.train.runs import rows, train

KEPT = Path(__file__).with_name("first_losses.json")
TOLERANCE = {"losses": 1e-6, "grad_norms": 4e-6}  # relative
STEPS = 12
SETTINGS = [
    "model.dropout=0",
    f"max_duration={STEPS}ba",
    "scheduler.t_warmup=4ba",
    "eval_data=null",
    "save_interval=100ba",
    "device_train_microbatch_size=3",
]


def first_losses(tiny: Path, tmp_path: Path, *more: str) -> dict[str, list[float]]:
    code, folder = train(tiny, tmp_path, *SETTINGS, *more, name="first")
    assert code == 0
    losses, norms = rows(folder, "train/loss"), rows(folder, "optim/grad_norm")
    return {
        "losses": [losses[step] for step in range(1, STEPS + 1)],
        "grad_norms": [norms[step] for step in range(1, STEPS + 1)],
    }


def as_kept() -> dict[str, object]:
    kept = json.loads(KEPT.read_text(encoding="utf-8"))
    return {key: pytest.approx(kept[key], rel=tolerance) for key, tolerance in TOLERANCE.items()}


def test_the_first_losses_are_those_that_were_kept(tiny: Path, tmp_path: Path) -> None:
    """E1: a factor left out of a loss, another order of samples, another rate: each moves them by more."""
    assert first_losses(tiny, tmp_path) == as_kept()


def test_a_small_change_is_seen(tiny: Path, tmp_path: Path) -> None:
    """E1: a hundredth more of the balance loss."""
    assert first_losses(tiny, tmp_path, "model.balance_loss=0.0101") != as_kept()
