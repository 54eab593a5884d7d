"""The first losses of a tiny run, kept as a file: what changes them changes every run, and is to be known.

    {"losses": [...], "grad_norms": [...]}      first_losses.json beside this file: fp32, x86_64, torch 2.11

- The whole way: shards, order of samples, initial weights, schedule, clipping, Muon and AdamW, all three loss terms.
- The tolerance is that of machines, not of methods: other vector units and other torch versions sum in another order.
  TOLERANCE is ten times what these differed by (see `test_...`): 2e-6 at most, on AVX-512, AVX2 and none, on torch 2.7
  to 2.15.
- Meant to change? `python -m tests.unit.train.test_first_losses` says what it is now.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.train.runs import rows, train

KEPT = Path(__file__).with_name("first_losses.json")
TOLERANCE = 2e-5
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


def test_the_first_losses_are_those_that_were_kept(tiny: Path, tmp_path: Path) -> None:
    """E1: a factor left out of a loss, another order of samples, another rate: each moves them by more."""
    kept, found = json.loads(KEPT.read_text()), first_losses(tiny, tmp_path)
    assert found["losses"] == pytest.approx(kept["losses"], rel=TOLERANCE)
    assert found["grad_norms"] == pytest.approx(kept["grad_norms"], rel=100 * TOLERANCE)


@pytest.mark.parametrize("change", ["optimizer.lr=4.999e-3", "seed=18", "model.balance_loss=0.0101"])
def test_a_small_change_is_seen(tiny: Path, tmp_path: Path, change: str) -> None:
    """E1: the file can tell."""
    kept, found = json.loads(KEPT.read_text()), first_losses(tiny, tmp_path, change)
    assert found != {key: pytest.approx(values, rel=TOLERANCE) for key, values in kept.items()}
