"""Whole runs in this process, on the tiny dataset, and what they left."""

import json
from pathlib import Path

import pytest
import torch

from moe.cli.train import main
from moe.train.checkpointing.checkpoints import read_checkpoint
from moe.train.checkpointing.contents import full_content
from tests.tiny import tiny_config, write_config

EPOCH = 24  # steps, on the `small` data
SHORT = ["max_duration=30ba", "scheduler.t_warmup=1ba", "eval_data=null", "save_interval=100ba"]


def train(tiny: Path, tmp_path: Path, *overrides: str, name: str = "run") -> tuple[int, Path]:
    """The exit code and the run folder."""
    path = write_config(tmp_path / "c.yaml", tiny_config(tiny))
    folder = tmp_path / name
    return main([str(path), f"save_folder={folder}", *overrides]), folder


def die(small: Path, tmp_path: Path, step: int, *overrides: str) -> Path:
    """The folder of a run that ended after `step` as by kill -9."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        die_after(step, patch)
        train(small, tmp_path, "eval_data=null", *overrides)
    return tmp_path / "run"


def rows(folder: Path, key: str) -> dict[int, float]:
    """A metric by step."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in lines if key in row]
    assert len(steps) == len(set(steps)), "a step is logged twice"
    return {row["step"]: row[key] for row in lines if key in row}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Those of the newest checkpoint."""
    newest = sorted(folder.glob("step-*"))[-1]
    return full_content(read_checkpoint(newest))["model"]


def assert_same_run(folder: Path, reference: Path) -> None:
    assert rows(folder, "train/loss") == rows(reference, "train/loss")
    found, expected = weights(folder), weights(reference)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def die_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run ends after `step` as by kill -9: nothing more is saved."""
    from moe.train.callbacks.console import Console

    plain = Console.batch_end

    def dies(self, state, logger):
        plain(self, state, logger)
        if int(state.timestamp.batch) == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(Console, "batch_end", dies)
